"""Joint training against plain autograd over all K bases; draws, schedules, resuming; every N and K."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from damaging import damage
from networks import TINY_IUNET
from torch import Tensor

from workloads.config import DataSpec, RemixJob, RunConfig
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import Batch, BatchStream
from workloads.diffusion.process import DiffusionProcess
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import CheckpointError, DamagedFileError
from workloads.training.coefficients import read_coefficients
from workloads.training.job import train_job
from workloads.training.processes import Workers
from workloads.training.remix.state import RemixState
from workloads.training.remix.step import RemixStep, draw_experts, prior_weight
from workloads.training.result import TrainingStopped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))


def run_config(training: dict[str, Any] | None = None, **strategy: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2},
            "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 3, "experts_per_step": 2, **strategy},
            "training": {
                "images": 96,
                "batch_size": 16,
                "checkpoint_every_images": 32,
                "log_every_images": 32,
                **(training or {}),
            },
            "evaluation": "demo",
        }
    )


def job_for(dataset: PreparedDataset, training: dict[str, Any] | None = None, **strategy: Any) -> RemixJob:
    config = run_config(training, **strategy)
    (job,) = config.jobs(dataset.spec(config.data))
    assert isinstance(job, RemixJob)
    return job


def perturbed(job: RemixJob, seed: int = 0) -> RemixState:
    """A state whose bases differ and whose zero-initialised layers are not zero, so that every gradient shows."""
    state = RemixState(job, CPU)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (*state.shared, *state.bases.vectors):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return state


def plain_gradients(state: RemixState, job: RemixJob, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """By autograd alone, K bases with gradients of their own, mixed in the graph: shared, bases, coefficients; loss."""
    config, remix = job.training, job.remix
    state = copy.deepcopy(state)
    experts = draw_experts(job.seed, len(job.intervals), remix.experts_per_step, 0)
    t_B, noise_BCHW, labels_B = RemixStep(job, CPU, Workers())._draw(experts, 0, batch.images_BCHW, batch.labels_B)
    assert labels_B is not None
    process = DiffusionProcess(job.diffusion)
    x_t_BCHW = process.add_noise(batch.images_BCHW, noise_BCHW, t_B)
    vectors = [vector.detach().clone().requires_grad_() for vector in state.bases.vectors]
    shared = dict(zip(_shared_names(state), state.shared, strict=True))
    group_size, total = config.batch_size // len(experts), torch.zeros(())
    for group, expert in enumerate(experts):
        alpha_LK = state.mixer(torch.tensor([expert]))[0]
        mixed: dict[str, Any] = {}
        for index, name in enumerate(state.bases.names):
            row = 0 if len(alpha_LK) == 1 else _layer_of(state, index)
            mixed[name] = sum(alpha_LK[row, k] * state.bases.views(v)[index] for k, v in enumerate(vectors))
        part = slice(group * group_size, (group + 1) * group_size)
        prediction = torch.func.functional_call(
            state.model, {**shared, **mixed}, (x_t_BCHW[part], t_B[part]), {"class_labels": labels_B[part]}
        ).sample
        x0 = batch.images_BCHW[part]
        total = total + process.loss(prediction, x0, noise_BCHW[part], t_B[part]).sum() / config.batch_size
    network = [*state.shared, *vectors]
    for parameter in network:
        parameter.grad = None
    total.backward()
    if config.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(network, config.clip_grad_norm)
    prior_loss = state.mixer.prior_loss()
    if prior_loss is not None:
        (prior_weight(remix.prior_strength, config.batch_size, config.images) * prior_loss).backward()
    gradients = [parameter.grad for parameter in (*network, *state.coefficients)]
    return [gradient for gradient in gradients if gradient is not None], total.detach()


def _shared_names(state: RemixState) -> list[str]:
    by_id = {id(parameter): name for name, parameter in state.model.named_parameters()}
    return [by_id[id(parameter)] for parameter in state.shared]


def _layer_of(state: RemixState, index: int) -> int:
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state.bases.names))
    return layers.index(state.bases.names[index].rpartition(".")[0])


@pytest.mark.parametrize("mixer", ["softmax", "per_layer", "raw", "one_hot", "continuous"])
@pytest.mark.parametrize("experts_per_step", [1, 2, 4, 8])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_gives_the_optimisers_plain_autograds_gradients(
    dataset: PreparedDataset, mixer: str, experts_per_step: int, clip: float | None
) -> None:
    training = {"clip_grad_norm": clip, "label_dropout": 0.5, "micro_batch_size": 3}
    job = job_for(dataset, training, mixer=mixer, experts_per_step=experts_per_step, prior_strength=0.5)
    check_gradients(dataset, job)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_so_it_does_when_every_parameter_is_mixed(dataset: PreparedDataset, clip: float | None) -> None:
    check_gradients(dataset, job_for(dataset, {"clip_grad_norm": clip}, mixed=["*"], prior_strength=0.5))


def check_gradients(dataset: PreparedDataset, job: RemixJob) -> None:
    """One step's gradients and loss against plain_gradients."""
    state = perturbed(job)
    batch = BatchStream(dataset, batch_size=16, seed=0).at(0)
    expected, expected_loss = plain_gradients(state, job, batch)
    mine: list[Tensor] = []

    def capture(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        mine.extend(parameter.grad.clone() for group in optimizer.param_groups for parameter in group["params"])

    for optimizer in state.optimizers:
        optimizer.register_step_pre_hook(capture)
    loss = RemixStep(job, CPU, Workers())(state, batch)
    torch.testing.assert_close(loss, expected_loss)
    assert len(mine) == len(expected)
    for ours, theirs in zip(mine, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-9)


@pytest.mark.parametrize(("num_experts", "num_bases"), [(6, 4), (7, 3), (16, 4), (24, 5), (1000, 4)])
def test_any_n_and_k_train_resume_and_denoise_at_the_last_timestep(
    dataset: PreparedDataset, tmp_path: Path, num_experts: int, num_bases: int
) -> None:
    config = run_config(num_experts=num_experts, num_bases=num_bases)
    (job,) = config.jobs(dataset.spec(config.data))
    train_job(job, dataset.path, tmp_path / "whole")
    steps = iter([False, False, False, True])
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path / "cut", should_stop=lambda: next(steps))
    again = train_job(job, dataset.path, tmp_path / "cut")
    assert again.weights_sha256 == train_job(job, dataset.path, tmp_path / "whole").weights_sha256
    ensemble = write_ensemble(tmp_path / "run" / "ensemble", config, dataset, [tmp_path / "cut"])
    assert ensemble.intervals.expert_of(999) == num_experts - 1
    output = ensemble.denoise(torch.randn(2, 1, 8, 8), 999, torch.tensor([0, 10]))
    assert output.shape == (2, 1, 8, 8)
    assert bool(output.isfinite().all())
    history = read_coefficients(tmp_path / "cut" / "coefficients.jsonl")
    assert [entry["images_seen"] for entry in history] == [32, 64, 96]


def test_every_timestep_is_trained_and_by_its_expert(dataset: PreparedDataset) -> None:
    """The public code cuts at floor(T / N): for N = 7 the last timesteps belong to nobody and are never drawn."""
    job = job_for(dataset, {"batch_size": 700}, num_experts=7, experts_per_step=7)
    step, x0 = RemixStep(job, CPU, Workers()), torch.zeros(700, 1, 8, 8)
    counts = torch.zeros(1000)
    for index in range(400):
        experts = draw_experts(job.seed, 7, 7, index)
        t_B, _, _ = step._draw(experts, index, x0, torch.zeros(700, dtype=torch.long))
        for group, expert in enumerate(experts):
            part = t_B[100 * group : 100 * (group + 1)]
            lo, hi = job.intervals[expert]
            assert lo <= int(part.min())
            assert int(part.max()) < hi
        counts += torch.bincount(t_B, minlength=1000)
    widths = torch.tensor([float(hi - lo) for lo, hi in job.intervals]).repeat_interleave(
        torch.tensor([hi - lo for lo, hi in job.intervals])
    )
    expected = 400 * 100 / widths
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < 993 + 4 * math.sqrt(2 * 993)  # 999 - 6 fixed sums; 4 sigma


@pytest.mark.parametrize(("num_experts", "num_drawn"), [(6, 2), (7, 4), (20, 8), (4, 9)])
def test_experts_are_drawn_uniformly_and_without_repeats(num_experts: int, num_drawn: int) -> None:
    counts = torch.zeros(num_experts)
    for step in range(4000):
        experts = draw_experts(3, num_experts, num_drawn, step)
        assert len(experts) == num_drawn
        assert len(set(experts)) == min(num_experts, num_drawn)
        assert experts == draw_experts(3, num_experts, num_drawn, step)
        counts += torch.bincount(torch.tensor(experts), minlength=num_experts)
    share = num_drawn / num_experts % 1
    sigma = math.sqrt(4000 * share * (1 - share)) or 1.0
    assert (counts - 4000 * num_drawn / num_experts).abs().max() < 4.5 * sigma


def test_distinct_experts_lower_the_variance_of_the_coefficient_gradient(dataset: PreparedDataset) -> None:
    """Over draws of the experts alone, at fixed per-expert gradients: against drawing each independently."""
    num_experts, num_drawn, num_steps = 8, 4, 4000
    torch.manual_seed(0)
    gradients_NK = torch.randn(num_experts, 4)

    def variance(draws: list[list[int]]) -> float:
        steps = torch.zeros(len(draws), num_experts, 4)
        for row, experts in enumerate(draws):
            for expert in experts:
                steps[row, expert] += gradients_NK[expert] / num_drawn
        return steps.var(0).sum().item()

    ours = variance([draw_experts(0, num_experts, num_drawn, step) for step in range(num_steps)])
    independent = variance(torch.randint(num_experts, (num_steps, num_drawn)).tolist())
    # Hypergeometric against binomial counts: (N - G) / (N - 1) of the variance.
    assert ours / independent == pytest.approx((num_experts - num_drawn) / (num_experts - 1), rel=0.1)


def test_the_prior_fades_to_exactly_zero() -> None:
    """In the public code it falls from twice its strength to once its strength."""
    assert prior_weight(1e-4, 0, 1000) == 1e-4
    assert prior_weight(1e-4, 500, 1000) == pytest.approx(0.5e-4)
    assert prior_weight(1e-4, 1000, 1000) == 0.0
    assert prior_weight(1e-4, 1016, 1000) == 0.0
    assert [prior_weight(1e-4, seen, 1000, "constant") for seen in (0, 500, 1016)] == [1e-4] * 3


def test_coefficients_have_a_learning_rate_of_their_own_down_to_zero(dataset: PreparedDataset) -> None:
    """In the public code both rates share the cosine's floor, so that of the coefficients ends at the network's."""
    job = job_for(dataset, {"images": 64, "lr_schedule": "cosine"}, coefficient_learning_rate=0.2)
    state, step = RemixState(job, CPU), RemixStep(job, CPU, Workers())
    stream = BatchStream(dataset, batch_size=16, seed=0)
    ratios, rates = [], []
    for seen in (0, 16, 32, 48):
        step(state, stream.at(seen))
        network, coefficients = (state.optimizers[i].param_groups[0]["lr"] for i in (1, -1))
        rates.append(coefficients)
        if network:
            ratios.append(coefficients / network)
    assert ratios == pytest.approx([0.2 / job.training.learning_rate] * 3)
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * seen / 64)) for seen in (16, 32, 48, 64)], abs=1e-9)


def test_bases_start_as_the_network_itself(dataset: PreparedDataset) -> None:
    """The public code initialises (K, out, in) weights as if they were convolutions, 17 times too small."""
    state = RemixState(job_for(dataset), CPU)
    plain = dict(state.model.named_parameters())
    fan_in, fan_out = 16, 64
    weight, fc1 = plain["blocks.0.mlp.fc1.weight"], state.bases.names.index("blocks.0.mlp.fc1.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.1)
    for alpha in state.mixer.table():
        state.bases.mix(alpha)
        torch.testing.assert_close(plain["blocks.0.mlp.fc1.weight"], state.bases.views(state.bases.vectors[0])[fc1])


def test_the_default_mixes_what_the_paper_mixes(dataset: PreparedDataset) -> None:
    names = RemixState(job_for(dataset), CPU).bases.names
    layers = {name.split(".", 2)[2].rpartition(".")[0] for name in names}
    assert layers == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert {name.rpartition(".")[2] for name in names} == {"weight", "bias"}


def test_a_u_net_can_be_remixed(dataset: PreparedDataset, tmp_path: Path) -> None:
    raw = run_config().model_dump(mode="json")
    raw["model"] = TINY_IUNET  # fmt: skip
    raw["strategy"]["mixed"] = ["*conv*", "*mixer*"]
    config = RunConfig.model_validate(raw)
    (job,) = config.jobs(dataset.spec(config.data))
    train_job(job, dataset.path, tmp_path / "store")
    ensemble = write_ensemble(tmp_path / "run" / "ensemble", config, dataset, [tmp_path / "store"])
    assert ensemble.denoise(torch.randn(1, 1, 8, 8), 500, torch.tensor([1])).isfinite().all()


def test_a_checkpoint_of_another_remix_is_refused(dataset: PreparedDataset) -> None:
    checkpoint = RemixState(job_for(dataset), CPU).checkpoint()
    with pytest.raises(CheckpointError, match="another remix"):
        RemixState(job_for(dataset, num_experts=7), CPU).restore(checkpoint)


def test_draws_are_functions_of_seed_and_place_alone() -> None:
    """The public code draws experts from Python's unseeded generator."""
    import random

    first = [draw_experts(1, 20, 4, seen) for seen in range(0, 640, 64)]
    random.seed(99)
    torch.manual_seed(99)
    assert [draw_experts(1, 20, 4, seen) for seen in range(0, 640, 64)] == first
    assert [draw_experts(2, 20, 4, seen) for seen in range(0, 640, 64)] != first


def test_keys_tell_remixes_apart(dataset: PreparedDataset) -> None:
    spec = DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10)
    changes: list[dict[str, Any]] = [
        {},
        {"num_bases": 2},
        {"mixer": "raw"},
        {"experts_per_step": 4},
        {"num_experts": 7},
    ]
    keys = [run_config(**change).jobs(spec)[0].key for change in changes]
    assert len(set(keys)) == len(keys)
    many = run_config()
    two = many.model_copy(update={"execution": many.execution.model_copy(update={"num_workers": 2})})
    assert two.jobs(spec)[0].key == keys[0]


def test_loading_an_ensemble_twice_gives_the_same_experts(dataset: PreparedDataset, tmp_path: Path) -> None:
    config = run_config()
    (job,) = config.jobs(dataset.spec(config.data))
    train_job(job, dataset.path, tmp_path / "store")
    write_ensemble(tmp_path / "run" / "ensemble", config, dataset, [tmp_path / "store"])
    x = torch.randn(1, 1, 8, 8)
    one, two = (Ensemble.load(tmp_path / "run") for _ in range(2))
    label = torch.tensor([3])
    expected = {timestep: one.denoise(x, timestep, label) for timestep in (0, 100, 500, 900)}
    for timestep in (900, 100, 500, 900, 0):
        assert torch.equal(two.denoise(x, timestep, label), expected[timestep])
    (file,) = (tmp_path / "run" / "ensemble" / "remix").glob("*.safetensors")
    damage(file)
    with pytest.raises(DamagedFileError, match="damaged"):
        Ensemble.load(tmp_path / "run").expert(0)

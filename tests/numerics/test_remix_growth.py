"""Growing a remix: the same function before and after, copies that part, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.plan.jobs import make_plan
from workloads.config import DataSpec, RemixJob, RunConfig
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.errors import ConfigError
from workloads.models.growth import split_bases
from workloads.models.initial import resolve_initial
from workloads.training.job import train_job
from workloads.training.processes import Workers
from workloads.training.remix.state import RemixState
from workloads.training.remix.step import RemixStep
from workloads.training.result import TrainingStopped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))


def run_config(initial: Path | None = None, **strategy: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2},
            "strategy": {"kind": "remix", "num_experts": 3, "num_bases": 2, "experts_per_step": 2, **strategy},
            "initial_weights": initial,
            "training": {"images": 96, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every_images": 32},
            "evaluation": "demo",
        }
    )


def job_of(spec: DataSpec, initial: Path | None = None, **strategy: Any) -> RemixJob:
    config = run_config(initial, **strategy)
    (job,) = config.jobs(spec, None if initial is None else resolve_initial(initial))
    assert isinstance(job, RemixJob)
    return job


@pytest.fixture(scope="module")
def spec(dataset: PreparedDataset) -> DataSpec:
    return dataset.spec(run_config().data)


def saved(spec: DataSpec, folder: Path, **strategy: Any) -> Path:
    """A remix in which no parameter is zero and no two bases are alike, as training leaves it on disk."""
    state = RemixState(job_of(spec, **strategy), CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (*state.shared, *state.bases.vectors):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return state.save(folder)


def brute_force(file: Path, state: RemixState, expert: int) -> dict[str, Tensor]:
    """An expert's parameters in float64: shared ones, and sum_k alpha_lk beta_k name by name."""
    tensors = {name: tensor.double() for name, tensor in load_file(file).items()}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state.bases.names))
    found = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("shared.")}
    for name in state.bases.names:
        alpha_LK = tensors["coefficients"][expert]
        row = alpha_LK[0] if len(alpha_LK) == 1 else alpha_LK[layers.index(name.rpartition(".")[0])]
        found[name] = sum((row[k] * beta for k, beta in enumerate(tensors[f"bases.{name}"])), torch.zeros(()))
    return found


GROWTHS = {
    "experts": ({}, {"num_experts": 6}),
    "bases": ({}, {"num_bases": 3}),
    "both": ({}, {"num_experts": 9, "num_bases": 5}),
    "twice as many and more": ({}, {"num_experts": 6, "num_bases": 6}),
    "raw": ({"mixer": "raw"}, {"mixer": "raw", "num_experts": 6, "num_bases": 3}),
    "per layer": ({"mixer": "per_layer"}, {"mixer": "per_layer", "num_experts": 6, "num_bases": 4}),
    "softmax to raw": ({}, {"mixer": "raw", "num_experts": 6, "num_bases": 3}),
    "softmax to per layer": ({}, {"mixer": "per_layer", "num_experts": 6, "num_bases": 3}),
    "uneven cuts": ({"num_experts": None, "cuts": [100, 700]}, {"num_experts": None, "cuts": [40, 100, 250, 700, 900]}),
}


@pytest.mark.parametrize(("small", "large"), GROWTHS.values(), ids=GROWTHS.keys())
def test_the_function_stays_the_same(
    spec: DataSpec, tmp_path: Path, small: dict[str, Any], large: dict[str, Any]
) -> None:
    file = saved(spec, tmp_path, **small)
    before = RemixState(job_of(spec, **small), CPU)
    after = RemixState(job_of(spec, file, **large), CPU)
    x_BCHW = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 3, 10])
    checked = 0
    for interval, model in after.networks():
        owner = before.job.intervals.expert_of(interval.lo)
        reference = before.model.double()
        for timestep in (interval.lo, interval.hi - 1):
            t_B = torch.full((3,), timestep)
            expected = torch.func.functional_call(
                reference, brute_force(file, before, owner), (x_BCHW.double(), t_B), {"class_labels": labels_B}
            ).sample
            output = model(x_BCHW, t_B, class_labels=labels_B).sample
            # float32 against float64 through two blocks
            torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == 2 * len(after.job.intervals)
    assert after.average is not None
    for average, parameter in zip(after.average.tensors, after._trained(), strict=True):
        assert torch.equal(average, parameter)


@pytest.mark.parametrize("num_bases", [3, 4, 7])
def test_splitting_keeps_every_sum_and_differs_between_experts(num_bases: int) -> None:
    table_NLK = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    sources, split_NLK = split_bases(table_NLK, num_bases)
    assert sources[:3] == [0, 1, 2]
    for basis in range(3):
        copies = [index for index, source in enumerate(sources) if source == basis]
        torch.testing.assert_close(split_NLK[..., copies].sum(-1), table_NLK[..., basis], rtol=0, atol=1e-15)
        for copy in copies[1:]:
            shares_N = (split_NLK[..., copy] / table_NLK[..., basis])[:, 0]
            assert float(shares_N.max() - shares_N.min()) > 0.05
    counts = [sources.count(basis) for basis in range(3)]
    assert max(counts) - min(counts) <= 1


def test_copies_of_a_basis_part_in_training(spec: DataSpec, dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_of(spec, saved(spec, tmp_path), num_experts=6, num_bases=4)
    state, step = RemixState(job, CPU), RemixStep(job, CPU, Workers())
    rows_KP = state.bases.storage_KP
    twins = [(a, b) for a in range(4) for b in range(a) if torch.equal(rows_KP[a], rows_KP[b])]
    assert len(twins) == 2
    stream = BatchStream(dataset, batch_size=16, seed=0)
    for _ in range(6):
        step(state, stream.at(state.images_seen))
    for a, b in twins:
        assert not torch.allclose(rows_KP[a], rows_KP[b], atol=1e-5)


def test_a_grown_remix_trains_and_resumes_bit_for_bit(spec: DataSpec, dataset: PreparedDataset, tmp_path: Path) -> None:
    first = train_job(job_of(spec), dataset.path, tmp_path / "small")
    job = job_of(spec, tmp_path / "small", num_experts=6, num_bases=3)
    assert job.initial is not None
    assert job.initial.sha256 == first.weights_sha256
    assert job.key != job_of(spec, num_experts=6, num_bases=3).key
    whole = train_job(job, dataset.path, tmp_path / "whole")
    steps = iter([False, False, True])
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path / "cut", should_stop=lambda: next(steps))
    assert train_job(job, dataset.path, tmp_path / "cut").weights_sha256 == whole.weights_sha256


def test_a_file_without_intervals_starts_as_many_experts_only(spec: DataSpec, tmp_path: Path) -> None:
    file = saved(spec, tmp_path)
    tensors = load_file(file)
    save_file(tensors, file)  # as earlier versions wrote it
    make_plan(run_config(file, num_bases=3), spec)
    with pytest.raises(ConfigError, match="does not say its intervals"):
        make_plan(run_config(file, num_experts=6), spec)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fewer experts": ({}, {"num_experts": 2}, "has num_experts 3, and strategy.num_experts is 2"),
    "fewer bases": ({}, {"num_bases": 1}, "has num_bases 2, and strategy.num_bases is 1"),
    "a cut is lost": ({}, {"num_experts": 4}, "has a cut at 333 that the new experts lack"),
    "one-hot": ({}, {"mixer": "one_hot"}, "mixer one_hot has no free coefficients"),
    "continuous": ({}, {"mixer": "continuous"}, "mixer continuous has no free coefficients"),
    "rows are lost": ({"mixer": "per_layer"}, {}, "coefficients per layer"),
    "other parameters": ({}, {"mixed": ["*.mlp.*"]}, "is of another remix"),
}


@pytest.mark.parametrize(("small", "large", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_change_the_function_is_refused(
    spec: DataSpec, tmp_path: Path, small: dict[str, Any], large: dict[str, Any], expected: str
) -> None:
    file = saved(spec, tmp_path, **small)
    with pytest.raises(ConfigError) as raised:
        make_plan(run_config(file, **large), spec)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_raw_coefficients_that_are_no_shares_cannot_become_a_softmax(spec: DataSpec, tmp_path: Path) -> None:
    file = saved(spec, tmp_path, mixer="raw")
    tensors = load_file(file)
    tensors["coefficients"] *= 2
    save_file(tensors, file, {"intervals": "[[333, 666], 1000]"})
    with pytest.raises(ConfigError, match=r"set strategy\.mixer to raw"):
        make_plan(run_config(file), spec)


def test_a_plain_network_cannot_start_from_a_remix(spec: DataSpec, tmp_path: Path) -> None:
    file = saved(spec, tmp_path)
    raw = run_config(file).model_dump(mode="json") | {"strategy": {"kind": "single"}}
    with pytest.raises(ConfigError, match=r"only strategy\.kind remix can start from"):
        make_plan(RunConfig.model_validate(raw), spec)

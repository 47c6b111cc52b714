"""Loss by timestep against a loop in float64 and against Gaussian data, whose best denoiser is known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workloads.analysis.loss_by_timestep import aligned_bins, ensemble_loss_by_timestep
from workloads.config import DiffusionConfig, Interval, IntervalTable, RunConfig
from workloads.config.data import CIFAR10Data, EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.diffusion.process import DiffusionProcess
from workloads.ensemble import write_ensemble
from workloads.training.job import train_job
from workloads.training.loss_by_timestep import fixed_examples, loss_by_timestep, uniform_bins

SIGMA = 0.2


class Network(nn.Module):
    """A denoiser given as a function of (x_t, t)."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().__init__()
        self.function = function
        self.labels: list[Tensor | None] = []

    def forward(self, x_BCHW: Tensor, t_B: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        assert not self.training
        self.labels.append(class_labels)
        return SimpleNamespace(sample=self.function(x_BCHW, t_B))


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """96 colour images whose pixels are independent N(0, 0.2^2) in [-1, 1]; rounding to uint8 adds under 0.1 %."""
    folder = tmp_path_factory.mktemp("gaussian")
    pixels = np.random.default_rng(0).normal(0, SIGMA, (96, 32, 32, 3))
    images = ((pixels + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    np.savez(folder / "images.npz", train_images=images, train_labels=np.arange(96) % 10)
    return ensure_prepared(CIFAR10Data(path=folder / "images.npz"), folder)


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_the_best_denoiser_of_gaussian_data_has_its_known_loss(gaussian: PreparedDataset, objective: str) -> None:
    """x_0 ~ N(0, s^2) and x_t = a x_0 + b eps make eps and v jointly Gaussian with x_t, so the best prediction is
    linear in x_t, and its error is the conditional variance."""
    process = DiffusionProcess(DiffusionConfig(objective=objective))
    abar_T = process.alphas_cumprod_T.double()
    variance_T = abar_T * SIGMA**2 + 1 - abar_T
    slope_T, error_T = (1 - abar_T).sqrt() / variance_T, abar_T * SIGMA**2 / variance_T
    if objective == "v_prediction":
        slope_T = (abar_T * (1 - abar_T)).sqrt() * (1 - SIGMA**2) / variance_T
        error_T = SIGMA**2 / variance_T
    model = Network(lambda x_BCHW, t_B: (slope_T[t_B].view(-1, 1, 1, 1) * x_BCHW).float())
    bins = [Interval(0, 1), Interval(30, 31), Interval(300, 301), Interval(400, 500), Interval(999, 1000)]
    curve = loss_by_timestep(model, process, gaussian, bins=bins, num_images=96)
    assert [t for t, _ in curve] == [0, 30, 300, 449, 999]
    expected = [float(error_T[lo:hi].mean()) for lo, hi in bins]
    # 96 images of 3072 values: a mean square scatters by sqrt(2 / 294912) = 0.26 %; four of those, and 0.1 % rounding.
    np.testing.assert_allclose([loss for _, loss in curve], expected, rtol=0.012)


def test_every_value_is_the_mean_of_a_plain_loop(gaussian: PreparedDataset) -> None:
    """One image at a time in float64, on a network that is wrong in a way that depends on x_t and t."""
    config = DiffusionConfig(num_timesteps=50, schedule="squaredcos_cap_v2", min_snr_gamma=5)  # the loss is unweighted
    process = DiffusionProcess(config)
    model = Network(lambda x_BCHW, t_B: 0.3 * x_BCHW + t_B.view(-1, 1, 1, 1) / 50)
    num_images, bins = 70, (Interval(0, 7), Interval(7, 48), Interval(48, 50))
    found = loss_by_timestep(model, process, gaussian, bins=bins, num_images=num_images, seed=3)
    examples = [
        (image, noise)
        for batch, noise_BCHW in fixed_examples(gaussian, num_images=num_images, seed=3)
        for image, noise in zip(batch.images_BCHW.double(), noise_BCHW.double(), strict=True)
    ]
    for (lo, hi), (_, loss) in zip(bins, found, strict=True):
        total = 0.0
        for position, (image, noise) in enumerate(examples):
            t = lo + int((position + 0.5) / num_images * (hi - lo))
            abar = float(process.alphas_cumprod_T[t])
            x_t = abar**0.5 * image + (1 - abar) ** 0.5 * noise
            total += float((0.3 * x_t + t / 50 - noise).square().mean())
        assert loss == pytest.approx(total / num_images, rel=1e-5)  # float32 networks


def test_predicting_nothing_costs_the_mean_square_of_the_noise_everywhere(gaussian: PreparedDataset) -> None:
    noise = torch.cat([noise_BCHW for _, noise_BCHW in fixed_examples(gaussian, num_images=80, seed=1)])
    assert noise.std() == pytest.approx(1, abs=0.01)
    model = Network(lambda x_BCHW, t_B: torch.zeros_like(x_BCHW)).train()
    curve = loss_by_timestep(model, DiffusionProcess(DiffusionConfig()), gaussian, num_images=80, seed=1)
    assert len(curve) == 12
    assert model.training
    for _, loss in curve:
        assert loss == pytest.approx(float(noise.double().square().mean()), rel=1e-6)


def test_examples_depend_on_the_seed_and_not_on_the_batch_size(gaussian: PreparedDataset) -> None:
    def examples(seed: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = list(fixed_examples(gaussian, num_images=50, seed=seed, batch_size=batch_size))
        images, labels = (torch.cat([batch[i] for batch, _ in parts]) for i in (0, 1))
        return images, labels, torch.cat([noise for _, noise in parts])

    for a, b, other in zip(examples(0, 64), examples(0, 7), examples(1, 64), strict=True):
        assert len(a) == 50
        assert torch.equal(a, b)
        assert not torch.equal(a, other)


def test_classes_are_told_only_to_networks_that_take_them(gaussian: PreparedDataset) -> None:
    process, bins = DiffusionProcess(DiffusionConfig()), [Interval(5, 6)]
    blind, told = (Network(lambda x_BCHW, t_B: x_BCHW) for _ in range(2))
    loss_by_timestep(blind, process, gaussian, bins=bins, num_images=8)
    loss_by_timestep(told, process, gaussian, bins=bins, num_images=8, class_conditional=True)
    (batch, _), *_ = fixed_examples(gaussian, num_images=8, seed=0)
    assert blind.labels == [None]
    assert told.labels[0] is not None
    assert torch.equal(told.labels[0], batch.labels_B)


@pytest.mark.parametrize(("cuts", "num_bins"), [((250, 500, 750), 12), ((10, 997), 5), ((), 7), ((1, 2, 3), 1)])
def test_aligned_bins_cover_every_timestep_once_and_stay_inside_one_interval(
    cuts: tuple[int, ...], num_bins: int
) -> None:
    table = IntervalTable(cuts, 1000)
    bins = aligned_bins(table, num_bins)
    assert [t for lo, hi in bins for t in range(lo, hi)] == list(range(1000))
    assert all(table.expert_of(lo) == table.expert_of(hi - 1) for lo, hi in bins)
    assert abs(len(bins) - num_bins) <= len(table)
    assert uniform_bins(3, 12) == (Interval(0, 1), Interval(1, 2), Interval(2, 3))


def test_experts_of_an_ensemble_are_measured_one_by_one_over_the_whole_range(tmp_path: Path) -> None:
    dataset = ensure_prepared(EmbeddedData(image_size=8), tmp_path)
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": {
                "kind": "ldm_unet",
                "channels": 8,
                "channel_mult": [1],
                "num_res_blocks": 1,
                "attention_levels": [],
                "head_dim": 8,
                "norm_groups": 4,
            },
            "strategy": {"kind": "independent", "num_experts": 2},
            "training": {"images": 32, "batch_size": 16},
            "evaluation": "demo",
        }
    )
    jobs = config.jobs(dataset.spec(config.data))
    for job in jobs:
        train_job(job, dataset.path, tmp_path / job.name)
    ensemble = write_ensemble(tmp_path / "ensemble", config, dataset, [tmp_path / job.name for job in jobs])
    curves = ensemble_loss_by_timestep(ensemble, dataset, num_bins=4, num_images=16)
    assert [[t for t, _ in curve] for curve in curves] == 2 * [[124, 374, 624, 874]]
    process = DiffusionProcess(config.diffusion)
    for index, curve in enumerate(curves):
        model = ensemble.expert(index)
        alone = loss_by_timestep(
            model, process, dataset, bins=uniform_bins(1000, 4), num_images=16, class_conditional=True
        )
        assert curve == alone
    assert curves[0] != curves[1]

"""The loss that runs are compared by, against a loop; differences are taken seed by seed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.runs.analysis.losses import RunLoss, difference
from orchestrator.runs.seeds import by_row
from workloads.analysis.loss_by_timestep import ensemble_loss
from workloads.config import DiffusionConfig, IntervalTable
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.diffusion.process import DiffusionProcess
from workloads.training.loss_by_timestep import fixed_examples


class Scale(nn.Module):
    """Predicts the noise as a multiple of x_t."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Any:
        return SimpleNamespace(sample=self.factor * sample)


@pytest.mark.parametrize("cuts", [(), (130,), (130, 131, 900)], ids=str)
def test_the_expert_in_charge_counts_at_each_timestep(cuts: tuple[int, ...], tmp_path_factory: Any) -> None:
    dataset = ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))
    factors = [0.1, 0.5, 0.9, 1.3][: len(cuts) + 1]
    table = IntervalTable(cuts, 1000)
    networks = [Scale(factor) for factor in factors]
    ensemble: Any = SimpleNamespace(
        intervals=table,
        diffusion=DiffusionConfig(),
        device=torch.device("cpu"),
        expert=networks.__getitem__,
        num_classes=None,
    )
    found = ensemble_loss(ensemble, dataset, num_timesteps=20, num_images=3, seed=5)
    process = DiffusionProcess(DiffusionConfig())
    (batch, noise_BCHW), *_ = fixed_examples(dataset, num_images=3, seed=5)
    total = 0.0
    for index in range(20):
        timestep = 25 + 50 * index
        factor = factors[sum(cut <= timestep for cut in cuts)]
        alpha = float(process.alphas_cumprod_T[timestep])
        for x0_CHW, noise_CHW in zip(batch.images_BCHW.double(), noise_BCHW.double(), strict=True):
            x_t_CHW = alpha**0.5 * x0_CHW + (1 - alpha) ** 0.5 * noise_CHW
            total += float(((factor * x_t_CHW - noise_CHW) ** 2).mean())
    assert found == pytest.approx(total / 60, rel=1e-5)


def test_differences_are_between_equal_seeds() -> None:
    runs = [RunLoss(Path(row), f"c-{row}-seed{seed}", loss) for row, seed, loss in [
        ("a", 0, 1.0), ("a", 1, 2.0), ("b", 1, 2.5), ("b", 0, 1.5), ("b", 7, 99.0), ("d", 7, 1.0),
    ]]  # fmt: skip
    rows = by_row(runs)
    assert list(rows) == ["c-a", "c-b", "c-d"]
    assert difference(rows["c-b"], rows["c-a"]) == "+0.50000 +- 0.00000"
    assert difference(rows["c-a"][:1], rows["c-b"]) == "-0.50000"
    assert difference(rows["c-d"], rows["c-a"]) == "no seed in common"

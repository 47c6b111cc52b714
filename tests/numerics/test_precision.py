"""Training with bf16 in the forward pass: the gradients, the losses and the bits of a resumed run."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import TINY_IUNET, TINY_UNET

from workloads.config import RunConfig
from workloads.config.data import EmbeddedData
from workloads.config.job import Job
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.models.build import WEIGHTS
from workloads.training.job import train_job
from workloads.training.processes import Workers
from workloads.training.records import read_records
from workloads.training.result import TrainingStopped
from workloads.training.state import slow_precision
from workloads.training.trainers import trainer_of

BF16_EPS = 2.0**-8
"""Half the distance from 1 to the next number: what rounding to bf16 may change."""

TINY_DIT = {"kind": "dit", "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 2}
REMIX = {"kind": "remix", "num_experts": 4, "num_bases": 2, "experts_per_step": 4}
SINGLE = {"kind": "single"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))


def job_of(
    dataset: PreparedDataset, precision: str, model: dict[str, Any], strategy: dict[str, Any], **training: Any
) -> Job:
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": model,
            "strategy": strategy,
            "training": {"images": 3200, "batch_size": 32, "precision": precision, "log_every_images": 160, **training},
            "evaluation": "demo",
        }
    )
    return config.jobs(dataset.spec(config.data))[0]


def first_gradient(job: Job, dataset: PreparedDataset) -> torch.Tensor:
    """Of the first step that sees past the layers that start at zero, as the optimiser gets it."""
    trainer = trainer_of(job)
    state, step = trainer.begin(torch.device("cpu"), Workers())
    optimizers = getattr(state, "optimizers", None) or [state.optimizer]
    torch.manual_seed(0)
    found: list[torch.Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found.extend(parameter.grad.flatten() for parameter in optimizer.param_groups[0]["params"])

    for optimizer in optimizers:
        for parameter in optimizer.param_groups[0]["params"]:
            torch.nn.init.normal_(parameter, std=0.1)
        optimizer.register_step_pre_hook(keep)
    step(state, BatchStream(dataset, batch_size=32, seed=0).at(0))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("model", "strategy"),
    [(TINY_DIT, SINGLE), (TINY_UNET, SINGLE), (TINY_IUNET, SINGLE), (TINY_DIT, REMIX)],
    ids=["dit", "unet", "iunet", "remix"],
)
def test_gradients_are_those_of_float32_but_for_eight_bits(
    dataset: PreparedDataset, model: dict[str, Any], strategy: dict[str, Any]
) -> None:
    exact, rounded = (
        first_gradient(job_of(dataset, precision, model, strategy), dataset) for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    error = float((rounded - exact).norm() / exact.norm())
    assert BF16_EPS / 16 < error < 8 * BF16_EPS  # more than nothing: the forward pass was in bf16


@pytest.mark.parametrize("strategy", [SINGLE, REMIX], ids=["single", "remix"])
def test_losses_fall_as_in_float32(dataset: PreparedDataset, tmp_path: Path, strategy: dict[str, Any]) -> None:
    curves = []
    for precision in ("fp32", "bf16"):
        job = job_of(dataset, precision, TINY_DIT, strategy, learning_rate=2e-3, warmup_images=0)
        train_job(job, dataset.path, tmp_path / precision)
        curves.append([record.loss for record in read_records(tmp_path / precision / "records.jsonl")])
    exact, rounded = curves
    assert len(exact) == len(rounded) == 20
    assert exact[-1] < 0.7 * exact[0]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_weights_stay_in_float32_and_a_resumed_run_is_the_unbroken_run(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    job = job_of(dataset, "bf16", TINY_DIT, SINGLE, images=160)
    train_job(job, dataset.path, tmp_path / "unbroken")
    calls = iter(range(10))
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path / "broken", should_stop=lambda: next(calls) >= 1)
    train_job(job, dataset.path, tmp_path / "broken")
    unbroken, broken = (
        safetensors.torch.load_file(tmp_path / folder / "expert" / WEIGHTS) for folder in ("unbroken", "broken")
    )
    assert unbroken.keys() == broken.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, broken[name]) for name, value in unbroken.items())


@pytest.mark.parametrize(
    ("precision", "features", "is_slow"),
    [
        ("bf16", {"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, True),
        ("bf16", {"architecture": "x86_64", "amx_bf16": True}, False),
        ("bf16", {"architecture": "aarch64"}, False),
        ("fp32", {"architecture": "x86_64", "amx_bf16": False}, False),
    ],
)
def test_a_processor_that_is_slow_at_it_is_named(
    dataset: PreparedDataset,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    features: dict[str, Any],
    is_slow: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    config = job_of(dataset, precision, TINY_DIT, SINGLE).training
    assert ("use fp32" in slow_precision(torch.device("cpu"), config)) == is_slow

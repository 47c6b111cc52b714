"""Workers that train one expert together do what one does, and go on as if they had never stopped."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from workloads.config import ExpertJob, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.training.job import train_job
from workloads.training.result import completed

pytestmark = pytest.mark.multiprocess

NUM_WORKERS = 3
"""With two, a sum has only one order; three notice when it changes."""


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    """A run of two experts whose batches are accumulated from pieces."""
    return {
        "name": "tiny",
        "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2},
        "strategy": {"kind": "independent", "num_experts": 2, "specialisation": 0.5},
        "training": {"images": 192, "batch_size": 24, "micro_batch_size": 3, "log_every_images": 48},
        "execution": {"workers_per_expert": NUM_WORKERS},
        "evaluation": {"name": "demo", "num_samples": 50, "sampling": {"num_steps": 2}},
    }


@pytest.fixture(scope="module")
def job(raw: dict[str, Any], dataset: PreparedDataset) -> ExpertJob:
    config = RunConfig.model_validate(raw)
    first = config.jobs(dataset.spec(config.data))[0]
    assert isinstance(first, ExpertJob)
    return first


@pytest.fixture(scope="module")
def group(job: ExpertJob, run_tasks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories that three workers have left: step, unbroken, and broken, which stopped in between."""
    root = tmp_path_factory.mktemp("group")
    tasks = [("step", job, root / "step"), ("whole", job, root / "unbroken")]
    run_tasks([*tasks, ("stopped", job, root / "broken"), ("whole", job, root / "broken")], num_workers=NUM_WORKERS)
    return root


def test_workers_step_as_one_does(job: ExpertJob, dataset: PreparedDataset, worker: ModuleType, group: Path) -> None:
    worker.step(job, dataset.path, group / "step")
    files = ["1-0", *(f"{NUM_WORKERS}-{rank}" for rank in range(NUM_WORKERS))]
    alone, *together = (torch.load(group / "step" / f"{name}.pt", weights_only=True) for name in files)
    for one in together:
        # Sums of 24 images in another order: a few of float32's last bits.
        assert one["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        for mine, theirs in zip(one["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-9)
        for mine, theirs in zip(one["weights"], together[0]["weights"], strict=True):
            assert torch.equal(mine, theirs)  # workers never drift apart


def test_a_stop_changes_no_bit_and_one_worker_learns_the_same(
    job: ExpertJob, dataset: PreparedDataset, group: Path, tmp_path: Path
) -> None:
    unbroken, broken = completed(group / "unbroken"), completed(group / "broken")
    assert unbroken is not None
    assert broken is not None
    assert broken.weights_sha256 == unbroken.weights_sha256
    alone = train_job(job, dataset.path, tmp_path, num_threads=1)
    assert unbroken.key == alone.key
    assert unbroken.images_seen == alone.images_seen == 192
    assert unbroken.final_loss == pytest.approx(alone.final_loss, rel=1e-4)

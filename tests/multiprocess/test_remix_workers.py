"""Two workers with gloo do what one does; what they exchange does not grow with the number of bases."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from workloads.config import RemixJob, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.training.job import train_job
from workloads.training.remix.state import RemixState

pytestmark = pytest.mark.multiprocess


def job_for(dataset: PreparedDataset, **strategy: Any) -> RemixJob:
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2},
            "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4, **strategy},
            "training": {"images": 64, "batch_size": 16, "log_every_images": 16, "clip_grad_norm": 0.5},
            "evaluation": "demo",
        }
    )
    (job,) = config.jobs(dataset.spec(config.data))
    assert isinstance(job, RemixJob)
    return job


class Group(NamedTuple):
    """What a group of two workers has left: it made single steps, and began a job that it was asked to stop."""

    stepped: dict[tuple[str, int], Path]
    """Directories with what one worker, and two, end up with after a step."""

    job: RemixJob
    stopped: Path


@pytest.fixture(scope="module")
def group(
    dataset: PreparedDataset,
    worker: ModuleType,
    run_tasks: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Group:
    """One start of two processes, which costs more than what they do, for all that needs no second one."""
    root = tmp_path_factory.mktemp("steps")
    variants = [("softmax", 1), ("softmax", 2), ("softmax", 4), ("softmax", 8), ("per_layer", 2), ("per_layer", 8)]
    jobs = {
        root / f"{mixer}-{count}": job_for(dataset, mixer=mixer, experts_per_step=count) for mixer, count in variants
    }
    for out, job in jobs.items():
        worker.step(job, dataset.path, out)
    whole, stopped = job_for(dataset), root / "whole"
    stopped.mkdir()
    (stopped / "stop").touch()
    run_tasks([*(("step", job, out) for out, job in jobs.items()), ("whole", whole, stopped)])
    return Group({(mixer, count): root / f"{mixer}-{count}" for mixer, count in variants}, whole, stopped)


def test_two_workers_step_as_one_does(group: Group) -> None:
    for folder in group.stepped.values():
        alone, first, second = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
        assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        for mine, theirs in zip(first["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-9)
        for mine, theirs in zip(first["weights"], second["weights"], strict=True):
            assert torch.equal(mine, theirs)  # workers never drift apart


def test_bytes_exchanged_grow_with_experts_per_step_but_not_beyond_the_bases(
    dataset: PreparedDataset, group: Group
) -> None:
    state = RemixState(job_for(dataset), torch.device("cpu"))
    shared, mixed = sum(p.numel() for p in state.shared), state.bases.size
    for count in (1, 2, 4, 8):
        num_bytes = torch.load(group.stepped["softmax", count] / "2-0.pt", weights_only=True)["bytes"]
        assert num_bytes == 4 * (shared + min(count, 4) * mixed + 1 + count * 4)


def test_a_whole_job_and_a_stop_that_all_see(
    dataset: PreparedDataset, group: Group, run_tasks: Callable[..., None], tmp_path: Path
) -> None:
    job, two = group.job, group.stopped
    alone = train_job(job, dataset.path, tmp_path / "alone")
    assert {path.name for path in two.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    assert list((two / "checkpoints").iterdir())
    (two / "stop").unlink()
    run_tasks([("whole", job, two)])
    together = train_job(job, dataset.path, two)
    assert together.images_seen == alone.images_seen == 64
    assert together.final_loss == pytest.approx(alone.final_loss, rel=1e-4)


def test_the_same_under_torchrun(torchrun: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> None:
    """python -m workloads, which knows neither Ray nor MLflow."""
    config = {
        "name": "tiny",
        "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4},
        "training": {"images": 64, "batch_size": 16, "log_every_images": 16},
        "evaluation": {"name": "demo", "num_samples": 50, "sampling": {"num_steps": 2}},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    result = torchrun("-m", "workloads", "run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"))
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["images_seen"] for line in lines if "images_seen" in line] == [16, 32, 48, 64]
    assert lines[-1]["name"] == "fd-fashion-cnn"

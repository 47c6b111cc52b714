"""A remix by a group of two: the weights of a plain loop, a worker's death, a stop, an error that would come back."""

import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from orchestrator.execution.supervisor import train_experts
from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import Plan, PlannedJob, make_plan
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.training.job import train_job
from workloads.training.result import JobResult

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


IMAGES = 6144
"""Enough of them for a signal to arrive while two workers train."""


class Journal:
    """Remembers states and records, and acts once when training has got somewhere."""

    def __init__(self, act: Any = lambda: None, at_images: int = 10**9) -> None:
        self.states: list[str] = []
        self.images_seen: list[int] = []
        self.checkpoints: list[int] = []
        self._act, self._at_images = act, at_images

    def __call__(self, event: ExpertEvent) -> None:
        if isinstance(event, events.Checkpointed):
            self.checkpoints.append(event.images_seen)
        elif isinstance(event, events.Progressed):
            self.images_seen += [record.images_seen for record in event.records]
            if self.images_seen[-1] >= self._at_images:
                self._at_images = 10**9
                self._act()
        else:
            self.states.append(event.state.value)


class Undisturbed(NamedTuple):
    """What came of a remix that nothing happened to."""

    plan: Plan
    job: PlannedJob
    store: ExpertStore
    journal: Journal
    result: JobResult


def planned_remix(tiny_run: dict[str, Any], dataset: PreparedDataset, **training: Any) -> tuple[Plan, PlannedJob]:
    raw = tiny_run | {
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4},
        "execution": {"num_workers": 2, "max_attempts": 2},
        "training": tiny_run["training"] | training,
    }
    config = RunConfig.model_validate(raw)
    made = make_plan(config, dataset.spec(config.data))
    return made, made.jobs[0]


def worker_pids() -> list[int]:
    """Processes of this cluster that train, told by its token."""
    found, token = [], os.environ["RAY_AUTH_TOKEN"].encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_worker = b"ray::ExpertActor" in (entry / "cmdline").read_bytes()
                if is_worker and token in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often enough to catch a tiny remix in the act."""
    monkeypatch.setattr("orchestrator.execution.supervisor.POLL_INTERVAL_S", 0.1)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_run: dict[str, Any], dataset: PreparedDataset, cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """A remix trained from the first to the last image by two workers."""
    made, job = planned_remix(tiny_run, dataset, images=IMAGES)
    store, journal = ExpertStore(tmp_path_factory.mktemp("undisturbed")), Journal()
    outcome = train_experts([job], dataset.path, store, made.config.execution, [journal])
    assert not outcome.failed
    return Undisturbed(made, job, store, journal, outcome.completed[job.key])


def test_two_workers_give_the_weights_of_one_loop_and_the_store_is_used(
    dataset: PreparedDataset, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    made, job, store, journal, result = undisturbed
    alone = train_job(job.job, dataset.path, tmp_path / "alone")
    assert result.final_loss == pytest.approx(alone.final_loss, rel=1e-3)
    assert journal.states == ["queued", "starting", "training", "done"]
    assert journal.images_seen == sorted(set(journal.images_seen))
    assert journal.images_seen[-1] == result.images_seen == IMAGES
    again = Journal()
    assert train_experts([job], dataset.path, store, made.config.execution, [again]).completed[job.key] == result
    assert again.states == ["reused"]


def test_a_stop_and_a_killed_worker_change_nothing(
    dataset: PreparedDataset, undisturbed: Undisturbed, store: ExpertStore
) -> None:
    made, job = undisturbed.plan, undisturbed.job
    assert threading.current_thread() is threading.main_thread()
    stopping = Journal(lambda: os.kill(os.getpid(), signal.SIGINT), at_images=512)
    outcome = train_experts([job], dataset.path, store, made.config.execution, [stopping])
    assert outcome.stopped == [job.key]
    checkpoint = max((store.path(job.key) / "checkpoints").iterdir())
    assert int(checkpoint.name) < IMAGES

    def kill() -> None:
        pids = worker_pids()
        assert len(pids) == 2
        os.kill(pids[-1], signal.SIGKILL)

    killing = Journal(kill, at_images=int(checkpoint.name) + 512)
    outcome = train_experts([job], dataset.path, store, made.config.execution, [killing])
    assert outcome.completed[job.key].images_seen == killing.images_seen[-1] == IMAGES
    assert outcome.completed[job.key].weights_sha256 == undisturbed.result.weights_sha256


def test_an_error_that_would_come_back_is_reported_once(
    tiny_run: dict[str, Any], dataset: PreparedDataset, store: ExpertStore
) -> None:
    made, job = planned_remix(tiny_run, dataset, learning_rate=1e30, clip_grad_norm=None)
    outcome = train_experts([job], dataset.path, store, made.config.execution, [Journal()])
    assert "failed after 1 attempt: the loss became nan" in outcome.failed[job.key].replace("inf", "nan")
    assert torch.is_grad_enabled()

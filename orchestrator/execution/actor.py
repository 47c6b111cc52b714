"""The Ray actor that trains experts; orchestrator/experts.py starts, watches and ends it."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ray

from orchestrator.plan.jobs import PlannedJob
from orchestrator.store.experts import check_store
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult


class Status(NamedTuple):
    """What an actor answers when asked how an expert is."""

    pid: int
    node_id: str
    records: list[TrainingRecord]


@dataclass(frozen=True)
class _Progress:
    records: list[TrainingRecord] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})
class ExpertActor:
    """Trains one expert after the other in a process of its own; answers while it trains."""

    def __init__(self, store_id: str) -> None:
        # Here, so that the driver, and Ray Train's controller, start without torch.
        from workloads.training.job import train_job

        self._train_job = train_job
        self._store_id = store_id
        self._progress: dict[str, _Progress] = {}

    def _of(self, key: str) -> _Progress:
        """By key, for a question about the next expert may arrive before its training has begun."""
        return self._progress.setdefault(key, _Progress())

    def train(self, planned: PlannedJob, data_path: Path, work_dir: Path) -> tuple[JobResult, list[TrainingRecord]]:
        """Run the job to its end; the result and all records of this attempt."""
        check_store(work_dir.parent, self._store_id, ray.util.get_node_ip_address())
        progress = self._of(planned.key)
        result = self._train_job(
            planned.job,
            data_path,
            work_dir,
            device=planned.resources.device,
            num_threads=planned.resources.num_threads,
            report=progress.records.append,
            should_stop=progress.stop.is_set,
        )
        return result, progress.records

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def poll(self, key: str, num_known: int) -> Status:
        """Where this runs, and the expert's records beyond those the caller knows."""
        import os

        return Status(os.getpid(), ray.get_runtime_context().get_node_id(), self._of(key).records[num_known:])

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self, key: str) -> None:
        """Ask for a checkpoint and an end."""
        self._of(key).stop.set()

"""The Ray actor that trains one expert; orchestrator/experts.py starts, watches and ends it."""

import threading
from pathlib import Path
from typing import NamedTuple

import ray

from orchestrator.plan import PlannedJob
from orchestrator.store import check_store
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult


class Status(NamedTuple):
    """What an actor answers when asked how it is."""

    pid: int
    node_id: str
    records: list[TrainingRecord]


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})
class ExpertActor:
    """Trains one expert in a process of its own; answers while it trains."""

    def __init__(self, planned: PlannedJob, data_path: Path, work_dir: Path, store_id: str) -> None:
        # Here, so that the driver, and Ray Train's controller, start without torch.
        from workloads.training.job import train_job

        self._train_job = train_job
        self._planned = planned
        self._data_path = data_path
        self._work_dir = work_dir
        self._store_id = store_id
        self._records: list[TrainingRecord] = []
        self._stop = threading.Event()

    def train(self) -> tuple[JobResult, list[TrainingRecord]]:
        """Run the job to its end; the result and all records of this attempt."""
        check_store(self._work_dir.parent, self._store_id, ray.util.get_node_ip_address())
        resources = self._planned.resources
        result = self._train_job(
            self._planned.job,
            self._data_path,
            self._work_dir,
            device="cuda" if resources.num_gpus > 0 else "cpu",
            # Ray only sets OMP_NUM_THREADS, and to 1 for fractions.
            num_threads=max(1, int(resources.num_cpus)),
            report=self._records.append,
            should_stop=self._stop.is_set,
        )
        return result, self._records

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def poll(self, num_known: int) -> Status:
        """Where this runs, and the records beyond those the caller knows."""
        import os

        return Status(os.getpid(), ray.get_runtime_context().get_node_id(), self._records[num_known:])

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Ask for a checkpoint and an end."""
        self._stop.set()

"""The Ray actor that trains experts; orchestrator/execution/supervisor.py starts, watches and ends it."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import ray

from orchestrator.plan.jobs import PlannedJob
from orchestrator.store.sites import Site
from orchestrator.store.storage import Folder, here
from workloads.imports import fast_imports
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult

if TYPE_CHECKING:
    from workloads.training.processes import Workers


class ActorReport(NamedTuple):
    """What an actor answers when asked how an expert is."""

    pid: int
    node_id: str
    node: str
    """Its address."""

    records: list[TrainingRecord]
    checkpoint_images: int
    """Of the newest checkpoint written in this attempt, 0 if there is none."""

    num_steps: int
    """That training has made; more than before is a sign of life."""

    remarks: Sequence[str] = ()
    """Warnings, which nobody would read where they were made."""


class _Remarks(logging.Handler):
    """Adds the warnings of this process to those of the expert that it trains."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.into: list[str] = []
        for name in ("orchestrator", "workloads"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.into.append(record.getMessage())


@dataclass
class _Course:
    """Of one expert's training in this process."""

    records: list[TrainingRecord] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    checkpoint_images: int = 0
    num_steps: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def counted(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """The question that is asked at every step, and with it the steps."""

        def asked() -> bool:
            self.num_steps += 1
            return should_stop()

        return asked

    def note_checkpoint(self, images_seen: int) -> None:
        self.checkpoint_images = images_seen


# Ray restarts nothing: it would put an expert that died behind all that wait.
# Two threads for control, so that a question does not hold up a stop.
@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})
class ExpertActor:
    """Trains one expert after the other in a process of its own; answers while it trains."""

    def __init__(self, site: Site) -> None:
        # Here, so that the driver starts without torch.
        with fast_imports():
            from workloads.training import job, processes
        # What was imported stays; from now on Python looks for garbage among the rest.
        gc.freeze()

        self._train_job, self._processes = job.train_job, processes
        self._site = site
        self._host = ray.util.get_node_ip_address()
        self._courses: dict[str, _Course] = {}
        self._remarks = _Remarks()

    def _of(self, key: str) -> _Course:
        """By key, for a question about the next expert may arrive before its training has begun."""
        return self._courses.setdefault(key, _Course())

    def meet(self) -> tuple[str, int]:
        """Be the first of a group, whom the others find at this host and port."""
        self._meeting = self._processes.open_meeting(self._host)
        return self._host, self._meeting.port

    def train(
        self, job: PlannedJob, data: Folder, rank: int = 0, address: tuple[str, int] | None = None
    ) -> tuple[JobResult, list[TrainingRecord], list[str]]:
        """Run the job to its end; the result and, from the first worker, all records of this attempt; its warnings.

        address: where a group meets, in which this is worker `rank`; None: it trains alone.
        """
        course = self._of(job.key)
        self._remarks.into = course.remarks
        leave = course.stop.set if rank == 0 else None  # the others follow the first
        with (
            self._site.job(job.key, course.note_checkpoint, self._host, leave, writes=rank == 0) as place,
            self._group(job, rank, address) as workers,
        ):
            result = self._train_job(
                self._site.job_here(job.job),
                here(data),
                place.path,
                device=job.resources.device,
                num_threads=job.resources.num_threads,
                workers=workers,
                report=course.records.append,
                on_checkpoint=place.on_checkpoint,
                should_stop=course.counted(self._processes.SharedStop(workers, course.stop.is_set, job.job.training)),
            )
        return result, course.records, course.remarks

    @contextmanager
    def _group(self, job: PlannedJob, rank: int, address: tuple[str, int] | None) -> "Iterator[Workers]":
        if address is None:
            yield self._processes.Workers()
            return
        meeting = self._meeting if rank == 0 else self._processes.join_meeting(*address)
        options = {"device": job.resources.device, "host": self._host}
        with self._processes.together(meeting, rank, job.num_workers, **options) as workers:
            yield workers

    # In a group of its own: the other methods wait until train() returns.
    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def poll(self, key: str, num_records: int, num_remarks: int) -> ActorReport:
        """Where this runs, and the expert's records and warnings beyond those that the caller knows."""
        import os

        course = self._of(key)
        node_id, node = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        # The caller counts what it has heard: an answer that comes after the expert's end is not read.
        records, remarks = course.records[num_records:], course.remarks[num_remarks:]
        return ActorReport(os.getpid(), node_id, node, records, course.checkpoint_images, course.num_steps, remarks)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self, key: str) -> None:
        """Ask for a checkpoint and an end."""
        self._of(key).stop.set()

"""The actors behind submitted experts: started, handed on, heard, ended. Decides nothing about experts."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.execution.actor import ActorReport, ExpertActor
from orchestrator.execution.cluster import with_resources
from orchestrator.plan.jobs import PlannedJob
from orchestrator.store.sites import Site
from orchestrator.store.storage import Folder
from workloads.config import Resources
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult


@dataclass
class ExpertProcess:
    """The actor of a submitted expert, and how far it has been heard."""

    job: PlannedJob
    actor: Any
    done: Any
    """Reference of train()."""

    asked: Any = None
    """Reference of the poll() under way."""

    asked_s: float = 0.0
    num_records: int = 0
    checkpoint_images: int = 0
    node_id: str = ""
    """Empty until it has answered."""

    @property
    def has_answered(self) -> bool:
        """Whether the actor has a process that runs; Ray may still look for a place for it otherwise."""
        return bool(self.node_id)


@dataclass(frozen=True)
class Ending:
    """How train() of an expert's actor ended: with a result and all records of the attempt, or with an error."""

    process: ExpertProcess
    result: JobResult | None = None
    records: tuple[TrainingRecord, ...] = ()
    """Those that have not been heard yet."""

    error: RayError | None = None


@dataclass(frozen=True)
class Heard:
    """What an actor answered when it was asked how its expert is."""

    process: ExpertProcess
    report: ActorReport
    is_first: bool


class ExpertProcesses:
    """By key. Actors that are done are kept a moment, for the next expert that asks for the same resources."""

    def __init__(self, site: Site, data: Folder) -> None:
        self._site, self._data = site, data
        self._by_key: dict[str, ExpertProcess] = {}
        self._free: list[ExpertProcess] = []
        """Done; their actors hold their resources until they get another expert or are ended."""

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def start(self, job: PlannedJob) -> bool:
        """Submit an expert to a free actor or to a new one; whether it has a process already, being a free one's."""
        actor = self._take_free(job.resources)
        is_free = actor is not None
        if not is_free:
            actor = with_resources(ExpertActor, job.resources).remote(self._site)
        self._submit(job, actor)
        return is_free

    def hand_over(self, key: str) -> bool:
        """Give a submitted expert that has no process a free one, which has imported all; whether there is one."""
        waiting = self._by_key[key]
        actor = self._take_free(waiting.job.resources)
        if actor is None:
            return False
        ray.kill(waiting.actor)
        self._submit(waiting.job, actor)
        return True

    def end_free(self) -> None:
        """End the actors that nobody took."""
        # A handle that is kept keeps its CPU, and the next expert would never start.
        while self._free:
            ray.kill(self._free.pop().actor)

    def stop(self, key: str) -> None:
        """Ask for a checkpoint and an end."""
        self._by_key[key].actor.stop.remote(key)

    def kill(self, key: str) -> None:
        """End the process; how its expert ended is still to be collected."""
        ray.kill(self._by_key[key].actor)

    def forget(self, key: str) -> None:
        """The expert's end is of no interest any more."""
        self._by_key.pop(key, None)

    def close(self) -> None:
        """End everything."""
        for process in [*self._by_key.values(), *self._free]:
            ray.kill(process.actor)

    def collect(self, timeout_s: float) -> Iterator[tuple[str, Ending]]:
        """Experts that have ended, well or not, or end before timeout_s is over."""
        if not self._by_key:
            # ray.wait returns at once if there is nothing to wait for.
            time.sleep(timeout_s)
            return
        by_reference = {process.done: key for key, process in self._by_key.items()}
        ended, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=timeout_s)
        for reference in ended:
            key = by_reference[reference]
            yield key, self._end(self._by_key.pop(key))

    def _end(self, process: ExpertProcess) -> Ending:
        try:
            result, records = ray.get(process.done)
        except RayError as error:
            # After an error of its own the process is alive, and would keep its CPU.
            ray.kill(process.actor)
            return Ending(process, error=error)
        self._free.append(process)
        return Ending(process, result, tuple(records[process.num_records :]))

    def poll(self, timeout_s: float) -> tuple[list[tuple[str, Heard]], list[str]]:
        """Ask every actor that is not being asked. What those that were asked before have answered, and who is silent:
        experts whose actors have answered before, but not what they were asked longer than timeout_s ago.
        """
        # One moment for all, and nobody is told in between: who listens may take long, and actors answer meanwhile.
        now_s, heard, silent = time.monotonic(), [], []
        for key, process in self._by_key.items():
            if process.asked is None:
                process.asked, process.asked_s = process.actor.poll.remote(key, process.num_records), now_s
                continue
            answered, _ = ray.wait([process.asked], timeout=0)
            if answered:
                if (answer := self._take_answer(process)) is not None:
                    heard.append((key, answer))
            # One that has never answered may wait for its place; that is no fault of its process.
            elif process.has_answered and now_s - process.asked_s > timeout_s:
                silent.append(key)
        return heard, silent

    def _take_answer(self, process: ExpertProcess) -> Heard | None:
        reference, process.asked = process.asked, None
        try:
            report: ActorReport = ray.get(reference)
        except RayError:
            return None  # train() of the same actor fails too, and is what counts
        is_first, process.node_id = not process.has_answered, report.node_id
        process.num_records += len(report.records)
        return Heard(process, report, is_first)

    def _submit(self, job: PlannedJob, actor: Any) -> None:
        done = actor.train.remote(job, self._data)
        self._by_key[job.key] = ExpertProcess(job, actor, done)

    def _take_free(self, resources: Resources) -> Any:
        """A free actor that holds just these, None if there is none; it is not free any more."""
        for process in self._free:
            if process.job.resources == resources:
                self._free.remove(process)
                return process.actor
        return None

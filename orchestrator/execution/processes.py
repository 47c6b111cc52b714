"""The actors behind submitted experts: started, handed on, heard, ended. Decides nothing about experts.

An expert has one actor, or a group of them that meet by torch.distributed and train it together; so does a remix. A
group is ours and not Ray Train's, so that what holds for one process holds for it: the loss of a node costs no attempt,
records are heard, a stop leaves a checkpoint, and when done it goes to the next expert. Ray places it as a whole or not
at all, and it ends as a whole.
"""

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import remove_placement_group

from orchestrator.execution.actor import ActorReport, ExpertActor
from orchestrator.execution.cluster import in_place, is_given, reserve, with_resources
from orchestrator.plan.jobs import PlannedJob, Request
from orchestrator.store.sites import Site
from orchestrator.store.storage import Folder
from workloads.errors import RememeError, WorkersPartedError
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult

GROUP_END_S = 10.0
"""When one worker of a group ends, the others end too, for want of its gradients; what they say within this time tells
why. NCCL may let them wait for ever."""


@dataclass
class Member:
    """One actor of an expert, and how far it has been heard."""

    actor: Any
    done: Any
    """Reference of train()."""

    asked: Any = None
    """Reference of the poll() under way."""

    asked_s: float = 0.0
    node_id: str = ""
    """Empty until it has answered."""

    @property
    def has_answered(self) -> bool:
        """Whether the actor has a process that runs; Ray may still look for a place for it otherwise."""
        return bool(self.node_id)


@dataclass
class ExpertProcess:
    """The actor, or actors, of a submitted expert, and what has been heard of it."""

    job: PlannedJob
    members: tuple[Member, ...]
    """The first is the one that reports and writes."""

    place: Any = None
    """What Ray reserves for them; None for one."""

    num_records: int = 0
    num_remarks: int = 0
    checkpoint_images: int = 0
    images_seen: int = 0
    broke_s: float | None = None
    """When the first of them was seen to have ended in an error."""

    @property
    def has_trained(self) -> bool:
        """Whether all training is done; what is measured afterwards makes no steps."""
        return self.images_seen >= self.job.job.training.images

    @property
    def has_answered(self) -> bool:
        """Whether all run."""
        return all(member.has_answered for member in self.members)

    def end(self) -> None:
        """Kill what is left of it."""
        for member in self.members:
            ray.kill(member.actor)
        if self.place is not None:
            remove_placement_group(self.place)


@dataclass(frozen=True)
class Ending:
    """How training of an expert ended: with a result and all records of the attempt, or with an error."""

    process: ExpertProcess
    result: JobResult | None = None
    records: tuple[TrainingRecord, ...] = ()
    """Those that have not been heard yet."""

    remarks: tuple[str, ...] = ()
    """The same of warnings."""

    error: RayError | None = None
    member: Member | None = None
    """Whose error it was."""


@dataclass(frozen=True)
class Heard:
    """What an actor answered when it was asked how its expert is."""

    process: ExpertProcess
    report: ActorReport
    is_first: bool
    """Whether from now on all actors of the expert are known to run."""


class ExpertProcesses:
    """By key. Actors that are done are kept a moment, for the next expert that asks for the same."""

    def __init__(self, site: Site, data: Folder) -> None:
        self._site, self._data = site, data
        self._by_key: dict[str, ExpertProcess] = {}
        self._free: list[ExpertProcess] = []
        """Done; their actors hold their resources until they get another expert or are ended."""

        self._extra: dict[str, Any] = {}
        """Places reserved beside those that an expert has, for the workers it lacks."""

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def start(self, job: PlannedJob) -> bool:
        """Submit an expert to free actors or to new ones; whether it has processes already, being a free one's."""
        free = self._take_free(job.request)
        if free is None:
            self._submit(job, *self._new_actors(job.request))
        else:
            self._submit(job, [member.actor for member in free.members], free.place)
        return free is not None

    def hand_over(self, key: str) -> bool:
        """Give a submitted expert that has no process a free one, which has imported all; whether there is one."""
        waiting = self._by_key[key]
        free = self._take_free(waiting.job.request)
        if free is None:
            return False
        waiting.end()
        self._submit(waiting.job, [member.actor for member in free.members], free.place)
        return True

    def end_free(self) -> None:
        """End the actors that nobody took."""
        # A handle that is kept keeps its CPU, and the next expert would never start.
        while self._free:
            self._free.pop().end()

    def stop(self, key: str) -> None:
        """Ask for a checkpoint and an end."""
        self._by_key[key].members[0].actor.stop.remote(key)

    def kill(self, key: str) -> None:
        """End the process; how its expert ended is still to be collected."""
        for member in self._by_key[key].members:
            ray.kill(member.actor)

    def make_room(self, lacking: Mapping[str, Request]) -> list[str]:
        """Reserve these places, by key, beside those that experts have, and no others any more; whose there are now.

        What waits for its reservation is demand that an autoscaler sees.
        """
        for key in self._extra.keys() - lacking.keys():
            if (place := self._extra.pop(key)) is not None:
                remove_placement_group(place)
        for key in lacking.keys() - self._extra.keys():
            self._extra[key] = reserve(lacking[key])
        return [key for key, place in self._extra.items() if is_given(place)]

    def on_nodes(self, node_ids: Set[str]) -> list[str]:
        """Experts that have a process on one of these."""
        return [
            key
            for key, process in self._by_key.items()
            if any(member.node_id in node_ids for member in process.members)
        ]

    def forget(self, key: str) -> None:
        """The expert's end is of no interest any more."""
        if (process := self._by_key.pop(key, None)) is not None:
            process.end()

    def close(self) -> None:
        """End everything."""
        self.make_room({})
        for process in [*self._by_key.values(), *self._free]:
            process.end()

    def collect(self, timeout_s: float) -> Iterator[tuple[str, Ending]]:
        """Experts that have ended, well or not, or end before timeout_s is over."""
        if not self._by_key:
            # ray.wait returns at once if there is nothing to wait for.
            time.sleep(timeout_s)
            return
        asked = [member.done for process in self._by_key.values() for member in process.members]
        ended = set(ray.wait(asked, num_returns=len(asked), timeout=timeout_s)[0])
        for key, process in list(self._by_key.items()):
            gone = [member for member in process.members if member.done in ended]
            if gone and (ending := self._ending(process, gone)) is not None:
                del self._by_key[key]
                yield key, ending

    def _ending(self, process: ExpertProcess, gone: Sequence[Member]) -> Ending | None:
        """How the expert ended, by those of its actors that did; None if the others are still to be waited for."""
        answers: list[Any] = []
        errors: list[tuple[RayError, Member]] = []
        for member in gone:
            try:
                answers.append(ray.get(member.done))
            except RayError as error:
                errors.append((error, member))
        all_ended = len(gone) == len(process.members)
        if errors:
            now_s = time.monotonic()
            process.broke_s = process.broke_s or now_s
            if not all_ended and now_s - process.broke_s < GROUP_END_S:
                return None
            # After an error of its own a process is alive, and would keep its CPU.
            process.end()
            cause, member = min(errors, key=lambda one: _hearsay(one[0]))
            return Ending(process, error=cause, member=member)
        if not all_ended:
            return None
        self._free.append(process)
        result, records, remarks = answers[0]
        return Ending(process, result, tuple(records[process.num_records :]), tuple(remarks[process.num_remarks :]))

    def poll(self, timeout_s: float) -> tuple[list[tuple[str, Heard]], list[str]]:
        """Ask every actor that is not being asked. What those that were asked before have answered, and who is silent:
        experts whose actors have answered before, but not what they were asked longer than timeout_s ago.
        """
        # One moment for all, and nobody is told in between: who listens may take long, and actors answer meanwhile.
        now_s, heard, silent = time.monotonic(), [], []
        for key, process in self._by_key.items():
            # The first last: once it answers, all run.
            for member in reversed(process.members):
                is_first = member is process.members[0]
                if is_first and not all(other.has_answered for other in process.members[1:]):
                    continue
                if member.asked is None:
                    known = (process.num_records, process.num_remarks) if is_first else (0, 0)
                    member.asked, member.asked_s = member.actor.poll.remote(key, *known), now_s
                elif ray.wait([member.asked], timeout=0)[0]:
                    had_answered = process.has_answered
                    report = self._take_answer(member)
                    if report is not None and is_first:
                        process.num_records += len(report.records)
                        process.num_remarks += len(report.remarks)
                        if report.records:
                            process.images_seen = report.records[-1].images_seen
                        heard.append((key, Heard(process, report, is_first=not had_answered)))
                # One that has never answered may wait for its place; that is no fault of its process.
                elif member.has_answered and now_s - member.asked_s > timeout_s and key not in silent:
                    silent.append(key)
        return heard, silent

    def _take_answer(self, member: Member) -> ActorReport | None:
        reference, member.asked = member.asked, None
        try:
            report: ActorReport = ray.get(reference)
        except RayError:
            return None  # train() of the same actor fails too, and is what counts
        member.node_id = report.node_id
        return report

    def _new_actors(self, request: Request) -> tuple[list[Any], Any]:
        place = reserve(request) if request.num_workers > 1 else None
        if place is None:
            one = with_resources(ExpertActor, request.resources)
            return [one.remote(self._site) for _ in range(request.num_workers)], None
        places = range(request.num_workers)
        return [in_place(ExpertActor, request.resources, place, index).remote(self._site) for index in places], place

    def _submit(self, job: PlannedJob, actors: Sequence[Any], place: Any) -> None:
        # A reference: who is to meet there waits until the first is up, and we do not.
        address = actors[0].meet.remote() if len(actors) > 1 else None
        members = [
            Member(actor, actor.train.remote(job, self._data, rank, address)) for rank, actor in enumerate(actors)
        ]
        self._by_key[job.key] = ExpertProcess(job, tuple(members), place)

    def _take_free(self, request: Request) -> ExpertProcess | None:
        """One whose actors hold just this, None if there is none; it is not free any more."""
        for process in self._free:
            if process.job.request == request:
                self._free.remove(process)
                return process
        return None


def _hearsay(error: RayError) -> int:
    """The lower, the nearer to the cause: a death, an error of ours, another one, an exchange that others broke off."""
    if not isinstance(error, RayTaskError):
        return 0
    if isinstance(error.cause, WorkersPartedError):
        return 3
    return 1 if isinstance(error.cause, RememeError) else 2

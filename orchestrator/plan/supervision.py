"""What the supervisor of experts does next: a function of where they stand and what was observed. Pure.

orchestrator/execution/supervisor.py observes (Ray, the store, signals) and carries out the actions.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from orchestrator.plan import events
from orchestrator.plan.errors import ExpertFailedError
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.observations import (
    Answered,
    Broke,
    FellSilent,
    Finished,
    Found,
    GivenRoom,
    HandedIn,
    LetGo,
    Noticed,
    Observation,
    Refused,
    StoppedOnRequest,
    Vanished,
)
from orchestrator.plan.policies import (
    FailureKind,
    GiveUp,
    after_failure,
    as_it_fits,
    longest_first,
    num_fitting,
    num_queued_ahead,
    why_unplaceable,
)

NODE_VERDICT_S = 40.0
"""Within this time it is known whether a process that vanished took its node along: Ray takes a node for dead some 12 s
after its last sign of life."""

# Where an expert stands; each holds what is needed to leave it.


@dataclass(frozen=True)
class Waiting:
    """For a place, and for its pause after a failure."""

    not_before_s: float = 0.0


@dataclass(frozen=True)
class Elsewhere:
    """Claimed by another driver."""


@dataclass(frozen=True)
class Submitted:
    """Ray was asked for a process; it has not answered yet."""

    is_ahead: bool
    """Beyond what fits, so probably still without a process."""

    has_process: bool = False
    """It was given one that ran already."""


@dataclass(frozen=True)
class Missing:
    """Its process does not answer any more, and it is not known yet whether its node is lost too."""

    node_id: str
    since_s: float


@dataclass(frozen=True)
class Running:
    """Its process has answered."""

    is_silent: bool = False
    """It did not answer in time and was killed for that."""

    is_leaving: bool = False
    """Its node is about to be taken away, and it was asked for a checkpoint."""

    is_growing: bool = False
    """There is room for the workers it lacks, and it was asked for a checkpoint."""

    since_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Ended:
    """Nothing more happens to it."""

    failure: str = ""
    """One sentence, if it failed."""

    is_stopped: bool = False


Phase = Waiting | Elsewhere | Submitted | Running | Missing | Ended


@dataclass(frozen=True)
class Unplaceable:
    """What an expert waits for, and since when."""

    reason: str
    since_s: float


@dataclass(frozen=True)
class Fleet:
    """All experts of a run that the store lacked at its beginning."""

    jobs: Mapping[str, PlannedJob]
    """Each with the workers it was started with last."""

    phases: Mapping[str, Phase]
    queue: tuple[str, ...]
    """Those that wait, in the order to start them."""

    attempts: Mapping[str, int]
    max_attempts: int
    wait_timeout_s: float = float("inf")
    grow_every_s: float = float("inf")
    unplaceable: Mapping[str, "Unplaceable"] = field(default_factory=dict)
    """Those that wait for what no live node has."""

    @classmethod
    def of(
        cls,
        jobs: Mapping[str, PlannedJob],
        max_attempts: int,
        wait_timeout_s: float = float("inf"),
        grow_every_s: float = float("inf"),
    ) -> "Fleet":
        """All wait, the longest first."""
        queue = tuple(longest_first({key: job.expected_macs for key, job in jobs.items()}))
        phases, attempts = dict.fromkeys(jobs, Waiting()), dict.fromkeys(jobs, 0)
        return cls(jobs, phases, queue, attempts, max_attempts, wait_timeout_s, grow_every_s)

    def those(self, *kinds: type) -> list[str]:
        """Keys of the experts that stand so."""
        return [key for key, phase in self.phases.items() if isinstance(phase, kinds)]

    @property
    def is_over(self) -> bool:
        """Whether nothing waits or runs any more."""
        return all(isinstance(phase, Ended) for phase in self.phases.values())

    @property
    def failed(self) -> dict[str, str]:
        """A sentence for each that failed."""
        ended = [(key, phase) for key, phase in self.phases.items() if isinstance(phase, Ended)]
        return {key: phase.failure for key, phase in ended if phase.failure}

    @property
    def stopped(self) -> list[str]:
        """Those that ended without a result because a stop was asked for."""
        return [key for key, one in self.phases.items() if isinstance(one, Ended) and one.is_stopped]

    def with_workers(self, key: str, number: int | None) -> "Fleet":
        """The same with one expert trained by so many; None: by as many as it is."""
        if number in {None, self.jobs[key].num_workers}:
            return self
        assert number is not None
        return replace(self, jobs={**self.jobs, key: self.jobs[key].by(number)})

    def moved(self, key: str, phase: Phase, attempts: int) -> "Fleet":
        """The same with one expert elsewhere; one that comes back to wait goes to the front of the queue."""
        queue = tuple(one for one in self.queue if one != key)
        if isinstance(phase, Waiting):
            queue = (key, *queue)  # it was started early because it is long
        others = dict(self.phases)
        if isinstance(phase, Submitted) and not isinstance(others[key], Submitted):
            del others[key]  # to the end: places are given in the order of submission
        phases, counts = {**others, key: phase}, {**self.attempts, key: attempts}
        return replace(self, phases=phases, queue=queue, attempts=counts)


# What is to be done.


@dataclass(frozen=True)
class Start:
    """Claim the expert and submit it."""

    key: str
    is_ahead: bool
    num_workers: int = 1


@dataclass(frozen=True)
class Tell:
    """Let everyone who listens hear of it."""

    event: ExpertEvent


@dataclass(frozen=True)
class Kill:
    """End the expert's process at once."""

    key: str


@dataclass(frozen=True)
class AskToStop:
    """Let the expert write a checkpoint and end."""

    key: str


@dataclass(frozen=True)
class Release:
    """Give up the expert's claim."""

    key: str


Action = Tell | Kill | AskToStop | Release


@dataclass(frozen=True)
class Step:
    """Where all stand now, and what is to be done, in order."""

    fleet: Fleet
    actions: tuple[Action, ...] = field(default=())


def next_start(fleet: Fleet, nodes: Sequence[Mapping[str, float]], now_s: float) -> Start | None:
    """The next waiting expert to submit: as many as fit the nodes at once, and a little beyond. None for now."""
    occupied = [fleet.jobs[key].request for key in fleet.those(Submitted, Running)]
    for key in fleet.queue:
        phase = fleet.phases[key]
        # One that sits out its pause does not hold up the others.
        if isinstance(phase, Waiting) and phase.not_before_s > now_s:
            continue
        job = as_it_fits(fleet.jobs[key], occupied, nodes)
        requests = [*occupied, job.request]
        fitting = num_fitting(requests, nodes)
        num_ahead = len(requests) - fitting
        return Start(key, num_ahead > 0, job.num_workers) if num_ahead <= num_queued_ahead(fitting) else None
    return None


def heirs(fleet: Fleet) -> list[str]:
    """Who a process that has become free may go to, first choice first: experts that have none yet.

    Those ahead come first, the longest of them before the others: it may have come back from a lost node, and stand
    behind many short ones. But Ray may have started one of those before one that fits, which then waits in its place.
    """
    submitted = [(key, phase) for key in fleet.those(Submitted) if isinstance(phase := fleet.phases[key], Submitted)]
    without = [(key, phase.is_ahead) for key, phase in submitted if not phase.has_process]
    return [key for key, _ in sorted(without, key=lambda one: (not one[1], -fleet.jobs[one[0]].expected_macs))]


def after(fleet: Fleet, seen: Observation) -> Step:
    """Where the experts stand after an observation, and what follows from it."""
    key, attempts = seen.key, fleet.attempts[seen.key]
    phase: Phase
    actions: tuple[Action, ...]
    match seen:
        case Refused():
            phase, actions = Elsewhere(), (Tell(events.TrainedElsewhere(key)),)
        case LetGo():
            phase, actions = Waiting(), ()
        case Found():
            phase, actions = Ended(), (Release(key), Tell(events.Reused(key)))
        # No new start: the actor that is replaced had no process yet.
        case HandedIn(is_takeover=True):
            phase, actions = Submitted(is_ahead=False, has_process=True), ()
        case HandedIn(is_ahead=is_ahead, has_process=has_process, num_workers=num_workers):
            attempts += 1
            fleet = fleet.with_workers(key, num_workers)
            job = fleet.jobs[key]
            together = job.num_workers if job.wanted_workers > 1 else None
            phase, actions = Submitted(is_ahead, has_process), (Tell(events.Starting(key, attempts, together)),)
        case Answered(pid=pid, node=node, now_s=now_s):
            phase, actions = Running(since_s=now_s), (Tell(events.Training(key, pid, node)),)
        # Why it was killed is kept, for Ray only says that it died.
        case FellSilent():
            phase, actions = Running(is_silent=True), (Kill(key),)
        case Noticed():
            phase, actions = Running(is_leaving=True), (AskToStop(key),)
        case GivenRoom():
            phase, actions = Running(is_growing=True), (AskToStop(key),)
        case Vanished(node_id=node_id, now_s=now_s):
            phase, actions = Missing(node_id, now_s), ()
        case Finished() | StoppedOnRequest() | Broke():
            return _after_end(fleet, seen)
        case _:
            raise AssertionError(f"nothing was decided about {seen}")
    return Step(fleet.moved(key, phase, attempts), actions)


def _after_end(fleet: Fleet, seen: Finished | StoppedOnRequest | Broke) -> Step:
    key, phase = seen.key, fleet.phases[seen.key]
    is_leaving = phase == Running(is_leaving=True)
    match seen:
        case Finished():
            ended, event = Ended(), Tell(events.Done(key))
        case StoppedOnRequest() if is_leaving:
            return _after_break(fleet, Broke(key, FailureKind.PREEMPTED, "", seen.now_s))
        case StoppedOnRequest() if phase == Running(is_growing=True):
            return _after_break(fleet, Broke(key, FailureKind.OUTGROWN, "", seen.now_s))
        case StoppedOnRequest():
            ended, event = Ended(is_stopped=True), Tell(events.Stopped(key))
        # Its time there was over; Ray does not always say so.
        case Broke(kind=FailureKind.PROCESS_DIED) if is_leaving:
            return _after_break(fleet, replace(seen, kind=FailureKind.PREEMPTED))
        case Broke():
            return _after_break(fleet, seen)
    return Step(fleet.moved(key, ended, fleet.attempts[key]), (Release(key), event))


def _after_break(fleet: Fleet, seen: Broke) -> Step:
    key = seen.key
    # As of a lost node: the start it cost is given back.
    attempts = fleet.attempts[key] - seen.kind.is_nobodys_fault
    decision = after_failure(seen.kind, attempts=attempts, max_attempts=fleet.max_attempts, cause=seen.cause)
    if isinstance(decision, GiveUp):
        failure = str(ExpertFailedError(fleet.jobs[key].name, attempts, decision.reason))
        moved = fleet.moved(key, Ended(failure), attempts)
        return Step(moved, (Release(key), Tell(events.Failed(key, decision.reason))))
    moved = fleet.moved(key, Waiting(seen.now_s + decision.delay_s), attempts)
    return Step(moved, (Tell(events.Restarting(key, seen.kind, attempts + 1)),))


def verdicts(fleet: Fleet, dead_nodes: Set[str], now_s: float) -> list[Broke]:
    """What became of those that are missing, as far as that is known by now."""
    found = []
    for key in fleet.those(Missing):
        phase = fleet.phases[key]
        assert isinstance(phase, Missing)
        if phase.node_id in dead_nodes:
            found.append(Broke(key, FailureKind.NODE_LOST, "", now_s))
        elif now_s - phase.since_s > NODE_VERDICT_S:
            found.append(Broke(key, FailureKind.PROCESS_DIED, "its node still answers", now_s))
    return found


def check_places(fleet: Fleet, nodes: Sequence[Mapping[str, float]], now_s: float) -> Step:
    """Say, once, of each expert that has no process whether some live node could hold it; give it up in the end."""
    actions: list[Action] = []
    unplaceable: dict[str, Unplaceable] = {}
    for key in fleet.those(Waiting, Submitted):
        reason = why_unplaceable(fleet.jobs[key], nodes)
        if reason is None:
            continue
        known = fleet.unplaceable.get(key)
        unplaceable[key] = Unplaceable(reason, now_s if known is None else known.since_s)
        if known is None or known.reason != reason:
            actions.append(Tell(events.WaitingFor(key, f"execution.{reason}")))
    fleet = replace(fleet, unplaceable=unplaceable)
    for key, one in unplaceable.items():
        if now_s - one.since_s > fleet.wait_timeout_s:
            reason = f"execution.{one.reason}, for {fleet.wait_timeout_s:g} s (execution.wait_timeout_s)"
            actions += [Kill(key)] if isinstance(fleet.phases[key], Submitted) else []
            actions += [Release(key), Tell(events.Failed(key, reason))]
            failure = str(ExpertFailedError(fleet.jobs[key].name, fleet.attempts[key], reason))
            fleet = fleet.moved(key, Ended(failure), fleet.attempts[key])
    return Step(fleet, tuple(actions))


def when_asked_to_stop(fleet: Fleet) -> Step:
    """Every expert that trains writes a checkpoint; the others have nothing to lose."""
    asked = [AskToStop(key) for key in fleet.those(Running)]
    killed = [Kill(key) for key in fleet.those(Submitted)]
    # Those that train are left out: how they end is still to be seen.
    step = _stopped(fleet, Waiting, Elsewhere, Submitted, Missing)
    return Step(step.fleet, (*asked, *killed, *step.actions))


def when_stop_is_over(fleet: Fleet) -> Step:
    """What has not ended by now, or wanted to be started again, counts as stopped."""
    return _stopped(fleet, Waiting, Elsewhere, Submitted, Running, Missing)


def _stopped(fleet: Fleet, *kinds: type) -> Step:
    keys = fleet.those(*kinds)
    for key in keys:
        fleet = fleet.moved(key, Ended(is_stopped=True), fleet.attempts[key])
    return Step(fleet, tuple(Tell(events.Stopped(key)) for key in keys))

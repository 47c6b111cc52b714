"""What happens to an expert, as values: sent once by who trains it, heard by terminal, tracking and job log alike.

Words are made where they are shown, and never read back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from orchestrator.plan.policies import FailureKind
from workloads.training.records import TrainingRecord


class ExpertState(Enum):
    """Where an expert stands; the value is the word people see."""

    QUEUED = "queued"
    REUSED = "reused"
    ELSEWHERE = "elsewhere"
    STARTING = "starting"
    TRAINING = "training"
    RESTARTING = "restarting"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def has_weights(self) -> bool:
        """Whether its training is complete."""
        return self in {ExpertState.REUSED, ExpertState.DONE}

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it in this run."""
        return self.has_weights or self in {ExpertState.FAILED, ExpertState.STOPPED}


@dataclass(frozen=True)
class ExpertEvent:
    """Something happened to the expert with this content key. Every kind survives pickling."""

    key: str

    state: ClassVar[ExpertState]
    """Where the expert stands from then on."""


EventListener = Callable[[ExpertEvent], None]
"""Hears every event of the experts it was given for, in order."""


def tell(listeners: Iterable[EventListener], event: ExpertEvent) -> None:
    """Let all hear of it."""
    for listener in listeners:
        listener(event)


@dataclass(frozen=True)
class Queued(ExpertEvent):
    """It waits for a place."""

    state = ExpertState.QUEUED


@dataclass(frozen=True)
class WaitingFor(ExpertEvent):
    """It waits for what no live node has."""

    reason: str
    """What it asks for and what there is."""

    state = ExpertState.QUEUED


@dataclass(frozen=True)
class Reused(ExpertEvent):
    """The store has it, or another driver has just finished it."""

    state = ExpertState.REUSED


@dataclass(frozen=True)
class TrainedElsewhere(ExpertEvent):
    """Another driver trains it; this one waits for the result."""

    state = ExpertState.ELSEWHERE


@dataclass(frozen=True)
class Starting(ExpertEvent):
    """The cluster was asked for its processes."""

    attempt: int = 1
    """Which start this is, from 1; lost nodes are not counted."""

    num_workers: int | None = None
    """That train it together; None: a process of its own."""

    @property
    def state(self) -> ExpertState:  # type: ignore[override]
        """A later start is a restart."""
        return ExpertState.STARTING if self.attempt == 1 else ExpertState.RESTARTING


@dataclass(frozen=True)
class Training(ExpertEvent):
    """Its process answers."""

    pid: int | None = None
    """On its node; None where several workers train it."""

    node: str | None = None
    """Address of that node."""

    state = ExpertState.TRAINING


@dataclass(frozen=True)
class Progressed(ExpertEvent):
    """New records, oldest first, at least one."""

    records: tuple[TrainingRecord, ...]

    state = ExpertState.TRAINING

    @property
    def images_seen(self) -> int:
        """How far it is."""
        return self.records[-1].images_seen


@dataclass(frozen=True)
class Checkpointed(ExpertEvent):
    """What it has learnt up to here outlives its process."""

    images_seen: int

    state = ExpertState.TRAINING


@dataclass(frozen=True)
class NoSignOfLife(ExpertEvent):
    """It neither answers nor makes steps; told once, until it does again."""

    silent_s: float
    node: str | None = None
    """Address of the node it is on."""

    state = ExpertState.TRAINING


@dataclass(frozen=True)
class Restarting(ExpertEvent):
    """It stopped, and will be started again from its last checkpoint."""

    cause: FailureKind
    attempt: int
    """Which start comes next."""

    state = ExpertState.RESTARTING


@dataclass(frozen=True)
class Done(ExpertEvent):
    """Trained here and now."""

    state = ExpertState.DONE


@dataclass(frozen=True)
class Failed(ExpertEvent):
    """Given up; the others go on."""

    reason: str
    """One sentence."""

    state = ExpertState.FAILED


@dataclass(frozen=True)
class Stopped(ExpertEvent):
    """Stopped on request."""

    state = ExpertState.STOPPED

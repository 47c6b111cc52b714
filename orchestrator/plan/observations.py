"""What the supervisor of experts sees of them; orchestrator/plan/supervision.py decides what follows."""

from dataclasses import dataclass

from orchestrator.plan.policies import FailureKind


@dataclass(frozen=True)
class Observation:
    """Something the supervisor saw about one expert."""

    key: str


@dataclass(frozen=True)
class Refused(Observation):
    """Another driver holds its claim."""


@dataclass(frozen=True)
class LetGo(Observation):
    """The other driver gave it up; the claim is ours."""


@dataclass(frozen=True)
class Found(Observation):
    """Another driver has finished it."""


@dataclass(frozen=True)
class HandedIn(Observation):
    """It was submitted to Ray (again, when a free process takes it over)."""

    is_ahead: bool = False
    has_process: bool = False
    is_takeover: bool = False
    num_workers: int | None = None
    """That train it this time; None: as many as the last."""


@dataclass(frozen=True)
class Answered(Observation):
    """Its process spoke for the first time, or all processes of its workers have."""

    pid: int | None = None
    """None where there are several."""

    node: str | None = None
    now_s: float = 0.0


@dataclass(frozen=True)
class FellSilent(Observation):
    """Its process, which had answered before, has not for too long."""


@dataclass(frozen=True)
class Noticed(Observation):
    """Its node is about to be taken away."""


@dataclass(frozen=True)
class GivenRoom(Observation):
    """There are places for the workers that it lacks."""


@dataclass(frozen=True)
class Finished(Observation):
    """Its weights are in the store."""


@dataclass(frozen=True)
class Vanished(Observation):
    """The connection to its process is gone, and nobody has said yet how that came."""

    node_id: str
    now_s: float


@dataclass(frozen=True)
class Broke(Observation):
    """Its process ended without a result."""

    kind: FailureKind
    cause: str
    now_s: float


@dataclass(frozen=True)
class StoppedOnRequest(Observation):
    """It wrote a checkpoint and ended, as it was asked to."""

    now_s: float = 0.0

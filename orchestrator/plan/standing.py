"""Where experts and runs stand: what all events so far come to, as values that are kept and shown. Pure."""

from collections.abc import Sequence
from enum import Enum
from typing import Literal

from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent, ExpertState
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.policies import FailureKind
from workloads.config import Interval
from workloads.config.base import StrictConfig

SILENT_AFTER_S = 60.0
"""Several signs of life of a driver may be late (a busy disk, clocks that differ) before it counts as gone."""


class Restart(StrictConfig):
    """An expert stopped and was to be started again."""

    cause: FailureKind
    at_s: float
    """Seconds since 1970."""

    lost_s: float
    """Training since the last checkpoint, and the time until it trained again."""


class ExpertStanding(StrictConfig):
    """Where one expert stands. Times are seconds since 1970."""

    key: str
    name: str
    interval: Interval
    total_images: int
    macs: float
    """Of a forward pass of one image."""

    state: ExpertState = ExpertState.QUEUED
    detail: str = ""
    """What it waits for, that it gives no sign of life, or why it failed."""

    images_seen: int = 0
    images_per_s: float = 0.0
    loss: float | None = None
    node: str | None = None
    """Address of the node that trains it, or did last."""

    pid: int | None = None
    num_workers: int | None = None
    """That train it together now; None: it has a process of its own."""

    wanted_workers: int = 1
    """That would, where there is room."""

    begun_s: float | None = None
    """When the cluster was first asked for it."""

    saved_s: float | None = None
    """When its training of this attempt began or, later, its newest checkpoint was written."""

    ended_s: float | None = None
    restarts: tuple[Restart, ...] = ()

    @classmethod
    def of(cls, job: PlannedJob) -> "ExpertStanding":
        """Before anything has happened."""
        return cls(
            key=job.key,
            name=job.name,
            interval=job.interval,
            total_images=job.job.training.images,
            macs=job.macs,
            wanted_workers=job.wanted_workers,
        )

    @property
    def remaining_s(self) -> float | None:
        """Until it is trained, at its present speed; None if it has none."""
        if self.state.has_ended or not self.images_per_s:
            return None
        return (self.total_images - self.images_seen) / self.images_per_s

    @property
    def lost_s(self) -> float:
        """Seconds that restarts have cost."""
        return sum(restart.lost_s for restart in self.restarts)

    def goodput(self, now_s: float) -> float | None:
        """Share of the time since it was begun that no restart has cost; None if it has not been."""
        if self.begun_s is None:
            return None
        elapsed_s = (now_s if self.ended_s is None else self.ended_s) - self.begun_s
        return 1.0 - self.lost_s / elapsed_s if elapsed_s > 0 else 1.0

    def after(self, event: ExpertEvent, now_s: float) -> "ExpertStanding":
        """Where it stands after an event."""
        changes: dict[str, object] = {"state": event.state}
        match event:
            case events.Starting(num_workers=num_workers):
                changes |= {
                    "num_workers": num_workers,
                    "detail": "",
                    "begun_s": now_s if self.begun_s is None else self.begun_s,
                }
            case events.Training(pid=pid, node=node):
                changes |= {"pid": pid, "node": node, "saved_s": now_s, "detail": "", "restarts": self._gone_on(now_s)}
            case events.Progressed(records=records):
                # Whole batches: the last may go beyond the budget.
                changes |= {"images_seen": min(self.total_images, records[-1].images_seen), "loss": records[-1].loss}
                changes["images_per_s"] = records[-1].images_per_s
                changes["detail"] = ""
            case events.NoSignOfLife(silent_s=silent_s):
                changes["detail"] = f"no sign of life for {silent_s:.0f} s"
            case events.Checkpointed():
                changes["saved_s"] = now_s
            case events.Restarting(cause=cause):
                lost_s = 0.0 if self.saved_s is None else now_s - self.saved_s
                restart = Restart(cause=cause, at_s=now_s, lost_s=lost_s)
                changes |= {"restarts": (*self.restarts, restart), "images_per_s": 0.0, "saved_s": None, "detail": ""}
            case events.WaitingFor(reason=reason) | events.Failed(reason=reason):
                changes["detail"] = reason
        if event.state.has_weights:
            changes["images_seen"] = self.total_images
        if event.state.has_ended:
            changes["ended_s"] = now_s
        return self.model_copy(update=changes)

    def _gone_on(self, now_s: float) -> tuple[Restart, ...]:
        # A takeover within the same attempt trains already.
        if not self.restarts or self.saved_s is not None:
            return self.restarts
        last = self.restarts[-1]
        return (*self.restarts[:-1], last.model_copy(update={"lost_s": last.lost_s + now_s - last.at_s}))


def remaining_s(experts: Sequence[ExpertStanding]) -> float | None:
    """Until all are trained if the speed of now lasts; None while nothing trains.

    At least as long as the slowest of those that train, and as the multiply-adds that are left take at the speed of all
    together.
    """
    own_s = [expert.remaining_s for expert in experts if expert.remaining_s is not None]
    macs_per_s = sum(expert.macs * expert.images_per_s for expert in experts if not expert.state.has_ended)
    if not own_s or not macs_per_s:
        return None
    waiting = [expert for expert in experts if not expert.state.has_ended]
    left = sum(expert.macs * (expert.total_images - expert.images_seen) for expert in waiting)
    return max(*own_s, left / macs_per_s)


def count_states(experts: Sequence[ExpertStanding]) -> dict[ExpertState, int]:
    """How many stand in each state, in the order of the states; states without experts are left out."""
    states = [expert.state for expert in experts]
    return {state: states.count(state) for state in ExpertState if state in states}


class DriverState(Enum):
    """Whether somebody carries a run out; the value is the word people see."""

    RUNS = "running"
    GONE = "driver gone"
    SILENT = "no sign of life of the driver"
    ENDED = "ended"


class RunStanding(StrictConfig):
    """A run (or a study) as its driver last wrote it down. Times are seconds since 1970."""

    name: str
    """Of its directory."""

    kind: str
    """The strategy, or `study`."""

    host: str
    pid: int
    job: str | None = None
    """Under which the cluster knows the driver, if it was submitted."""

    begun_s: float
    written_s: float
    doing: str = ""
    done: int = 0
    total: int = 0
    """Of what is being done, where that is counted."""

    ended: Literal["", "finished", "stopped", "failed"] = ""
    reason: str = ""
    """Why it failed."""

    experts: tuple[ExpertStanding, ...] = ()

    def driver(self, *, here: str, is_locked: bool | None, now_s: float) -> DriverState:
        """What has become of the driver, seen from the host `here` where its lock looks so (None: cannot be told).

        A lock that is held is always true. One that is free proves an end only on the driver's own host: not every
        shared file system passes locks on, and then the last sign of life counts.
        """
        if self.ended:
            return DriverState.ENDED
        if is_locked:
            return DriverState.RUNS
        if is_locked is False and self.host == here:
            return DriverState.GONE
        return DriverState.RUNS if now_s - self.written_s <= SILENT_AFTER_S else DriverState.SILENT

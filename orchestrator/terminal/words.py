"""Sizes, durations and what happens to experts, in words."""

from datetime import datetime

from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent


def si(value: float) -> str:
    """Four significant digits with an SI prefix: 274.1 M, 96.05 G."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g} "


def duration(seconds: float) -> str:
    """1:05, or 2:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def timestamp(at_s: float | None = None) -> str:
    """Of a moment in seconds since 1970, or of now: local time with its distance from UTC, to be compared anywhere."""
    moment = datetime.now() if at_s is None else datetime.fromtimestamp(at_s)
    return moment.astimezone().isoformat(timespec="seconds")


def detail(event: ExpertEvent) -> str:
    """What is worth saying of an event besides the state it leads to; often nothing."""
    match event:
        case events.Starting(num_workers=int(num_workers)):
            return f"{num_workers} worker{'s' if num_workers > 1 else ''}"
        case events.Training(pid=int(pid), node=node):
            return f"pid {pid} on {node}" if node else f"pid {pid}"
        case events.NoSignOfLife(silent_s=silent_s, node=node):
            return f"no sign of life for {duration(silent_s)}{f' on node {node}' if node else ''}"
        case events.Restarting(cause=cause):
            return cause.value
        case events.Failed(reason=reason) | events.WaitingFor(reason=reason):
            return reason
    return "another command trains it; it is waited for" if isinstance(event, events.TrainedElsewhere) else ""

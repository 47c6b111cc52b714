"""When groups that a cluster had too few places for get the workers they lack. Pure."""

from orchestrator.plan.jobs import Request
from orchestrator.plan.supervision import Fleet, Running, Submitted, Waiting


def lacking_places(fleet: Fleet, now_s: float) -> dict[str, Request]:
    """By key, the places that groups lack which have run with fewer workers than wanted for long enough.

    None while others wait for a place: they go first.
    """
    if set(fleet.those(Waiting, Submitted)) - fleet.unplaceable.keys():
        return {}
    lacking: dict[str, Request] = {}
    for key in fleet.those(Running):
        job, phase = fleet.jobs[key], fleet.phases[key]
        assert isinstance(phase, Running)
        is_due = phase.is_growing or (phase == Running() and now_s - phase.since_s >= fleet.grow_every_s)
        if job.num_workers < job.wanted_workers and is_due:
            lacking[key] = job.by(job.wanted_workers - job.num_workers).request
    return lacking

"""Retries, places and order: single decisions as values, which supervision.py and the cluster's checks put together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from orchestrator.plan.jobs import PlannedJob, Request
from workloads.config import Resources

MAX_DELAY_S = 60.0
"""Pauses double from a second; with many attempts, doubling alone would soon come to hours."""


class FailureKind(Enum):
    """Why an expert stopped."""

    PROCESS_DIED = "its process died"
    OUT_OF_MEMORY = "its node ran out of memory"
    NODE_LOST = "its node left the cluster"
    PREEMPTED = "its node was preempted"
    NOT_ANSWERING = "it stopped answering"
    WORKERS_PARTED = "its workers lost one another"
    RAISED = "it raised an error"
    OUTGROWN = "there was room for more workers"

    @property
    def is_nobodys_fault(self) -> bool:
        """Whether it says nothing about the expert; then it costs no attempt."""
        return self in {FailureKind.NODE_LOST, FailureKind.PREEMPTED, FailureKind.OUTGROWN}


@dataclass(frozen=True)
class Retry:
    """Start the expert again from its last checkpoint after a pause."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """Report the expert as failed; the others go on."""

    reason: str


def after_failure(kind: FailureKind, *, attempts: int, max_attempts: int, cause: str) -> Retry | GiveUp:
    """What to do with an expert that has been started `attempts` times and stopped again.

    An exception would come back: training is deterministic. A lost node is nobody's fault and costs no attempt.
    """
    if kind is FailureKind.RAISED:
        return GiveUp(cause)
    if kind.is_nobodys_fault:
        return Retry(delay_s=0.0)
    if attempts >= max_attempts:
        return GiveUp(f"{kind.value} ({cause})" if cause else kind.value)
    return Retry(delay_s=min(MAX_DELAY_S, 2.0 ** (attempts - 1)))


def longest_first(expected_cost: Mapping[str, float]) -> list[str]:
    """Keys in the order to start them: a long job started last would leave the other slots idle at the end."""
    # Equal ones by key, so that a run starts its experts in the same order each time.
    return sorted(expected_cost, key=lambda key: (-expected_cost[key], key))


class Node(dict[str, float]):
    """What a node offers in all, by Ray's names, and its labels."""

    def __init__(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> None:
        super().__init__(resources)
        self.labels = labels


ACCELERATOR = "accelerator_type:"
"""So begins Ray's resource of nodes with some kind of GPU: one of it, of which who wants that kind takes a bit."""


def as_ray_resources(resources: Resources) -> dict[str, float]:
    """Ray's names: {"CPU": 1, "GPU": 0.25, "highmem": 1}; what is not asked for is left out."""
    named = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    if resources.accelerator_type is not None:
        named[f"{ACCELERATOR}{resources.accelerator_type}"] = 0.001
    return {name: amount for name, amount in named.items() if amount > 0}


def has_labels(node: Mapping[str, float], selector: Mapping[str, str]) -> bool:
    """Whether Ray lets a task with this selector onto the node: "a", "!a", "in(a, b)", "!in(a, b)"."""
    labels = node.labels if isinstance(node, Node) else {}
    for name, wanted in selector.items():
        values = wanted.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
        if (labels.get(name) in {value.strip() for value in values}) == wanted.startswith("!"):
            return False
    return True


def num_slots(requests: Sequence[Resources], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of the requests the nodes can hold at once, placed in order; a later one may fit where one did not."""
    return num_fitting([Request(one) for one in requests], nodes)


def num_fitting(requests: Sequence[Request], nodes: Sequence[Mapping[str, float]]) -> int:
    """The same of jobs of several workers, which are placed all or none."""
    free = [dict(node) for node in nodes]
    first: Counter[tuple[frozenset[Any], ...]] = Counter()
    placed = 0
    for request in requests:
        wanted, selector = as_ray_resources(request.resources), request.resources.label_selector
        kind = (frozenset(wanted.items()), frozenset(selector.items()))
        # Nodes only fill up: where one like it found no room, this one finds none either.
        while (at := first[kind]) < len(free) and not (has_labels(nodes[at], selector) and _fits(wanted, free[at])):
            first[kind] += 1
        rooms = (free[index] for index in range(at, len(free)) if has_labels(nodes[index], selector))
        placed += _place(request, wanted, rooms)
    return placed


def as_it_fits(job: PlannedJob, occupied: Sequence[Request], nodes: Sequence[Mapping[str, float]]) -> PlannedJob:
    """With as many of the workers it may have as fit beside the others; with the fewest where even they do not."""
    if job.fewest_workers < job.wanted_workers:
        alone = num_fitting(occupied, nodes)
        for count in job.worker_counts:
            if num_fitting([*occupied, job.by(count).request], nodes) > alone:
                return job.by(count)
    return job.by(job.fewest_workers)


def num_queued_ahead(fitting: int) -> int:
    """How many experts are submitted beyond those that fit now: one takes over a slot at once, more show an autoscaler
    that there is demand. Half as many again, so that a cluster of one node is soon one of thirty.
    """
    return max(1, fitting // 2)


def _place(request: Request, wanted: Mapping[str, float], rooms: Iterable[dict[str, float]]) -> bool:
    """Take room for all workers, or for none."""
    taken: list[dict[str, float]] = []
    for room in rooms:
        if request.placement == "STRICT_PACK":
            _give_back(taken, wanted)
        while len(taken) < request.num_workers and _fits(wanted, room):
            taken.append(room)
            for name, amount in wanted.items():
                room[name] -= amount
        if len(taken) == request.num_workers:
            return True
    _give_back(taken, wanted)
    return False


def _give_back(taken: list[dict[str, float]], wanted: Mapping[str, float]) -> None:
    while taken:
        room = taken.pop()
        for name, amount in wanted.items():
            room[name] += amount


def _fits(wanted: Mapping[str, float], room: Mapping[str, float]) -> bool:
    # Fractions of a GPU leave a little less than they should when they are taken away one by one.
    return all(room.get(name, 0.0) >= amount - 1e-9 for name, amount in wanted.items())


def why_unplaceable(job: PlannedJob, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """None if the nodes could hold the job when idle, otherwise what is missing and how much there is."""
    job = job.by(job.fewest_workers)
    reason = why_infeasible(job.resources, nodes)
    # One worker fits where some node can hold it. This is asked about all that wait, at every look.
    if reason is not None or job.num_workers == 1 or num_fitting([job.request], nodes):
        return reason
    rooms = [[node] for node in nodes] if job.placement == "STRICT_PACK" else [nodes]
    most = max(num_slots([job.resources] * job.num_workers, room) for room in rooms)
    where = " on one node" if job.placement == "STRICT_PACK" else ""
    verb = "needs" if job.workers_field == "min_workers" else "is"
    return f"{job.workers_field} {verb} {job.num_workers}, but only {most} of them fit at once{where}"


def why_infeasible(request: Resources, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """None if some node could hold the request when idle, otherwise what is missing and how much there is."""
    wanted = as_ray_resources(request)
    if request.label_selector:
        able = [node for node in nodes if has_labels(node, request.label_selector)]
        if not able:
            return _why_no_label(request.label_selector, nodes)
        nodes = able
    if any(_fits(wanted, node) for node in nodes):
        return None
    if (kind := request.accelerator_type) is not None and not any(f"{ACCELERATOR}{kind}" in node for node in nodes):
        offered = sorted({name.removeprefix(ACCELERATOR) for node in nodes for name in node if ACCELERATOR in name})
        return f"resources.accelerator_type is {kind}, but the nodes offer {', '.join(offered) or 'none'}"
    for name, amount in wanted.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if largest < amount:
            return f"{field_of(name)} is {amount:g}, but no node has more than {largest:g}"
    return f"no single node has {', '.join(f'{amount:g} {name}' for name, amount in wanted.items())} together"


def _why_no_label(selector: Mapping[str, str], nodes: Sequence[Mapping[str, float]]) -> str:
    asked = ", ".join(f"{name}={value}" for name, value in selector.items())
    labels = [node.labels for node in nodes if isinstance(node, Node)]
    offers = sorted({f"{name}={one[name]}" for one in labels for name in selector if name in one})
    return f"resources.label_selector asks for {asked}, but the nodes offer {', '.join(offers) or 'no such label'}"


def field_of(resource: str) -> str:
    """The config field behind a Ray resource name."""
    return {"CPU": "resources.num_cpus", "GPU": "resources.num_gpus"}.get(resource, f"resources.custom.{resource}")

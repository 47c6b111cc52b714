"""Retries, places and order: single decisions as values, which supervision.py and the cluster's checks put together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from workloads.config.execution import Resources

MAX_DELAY_S = 60.0
"""Pauses double from a second; with many attempts, doubling alone would soon come to hours."""


class FailureKind(Enum):
    """Why an expert stopped."""

    PROCESS_DIED = "its process died"
    OUT_OF_MEMORY = "its node ran out of memory"
    NODE_LOST = "its node left the cluster"
    PREEMPTED = "its node was preempted"
    NOT_ANSWERING = "it stopped answering"
    RAISED = "it raised an error"

    @property
    def is_of_the_node(self) -> bool:
        """Whether it befell the node; then it says nothing about the expert, and costs it no attempt."""
        return self in {FailureKind.NODE_LOST, FailureKind.PREEMPTED}


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
    if kind.is_of_the_node:
        return Retry(delay_s=0.0)
    if attempts >= max_attempts:
        return GiveUp(f"{kind.value} ({cause})" if cause else kind.value)
    return Retry(delay_s=min(MAX_DELAY_S, 2.0 ** (attempts - 1)))


def longest_first(expected_cost: Mapping[str, float]) -> list[str]:
    """Keys in the order to start them: a long job started last would leave the other slots idle at the end."""
    # Equal ones by key, so that a run starts its experts in the same order each time.
    return sorted(expected_cost, key=lambda key: (-expected_cost[key], key))


def as_ray_resources(resources: Resources) -> dict[str, float]:
    """Ray's names: {"CPU": 1, "GPU": 0.25, "highmem": 1}; what is not asked for is left out."""
    named = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    return {name: amount for name, amount in named.items() if amount > 0}


def num_slots(requests: Sequence[Resources], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of the requests the nodes can hold at once, placed in order; a later one may fit where one did not."""
    free = [dict(node) for node in nodes]
    tried: Counter[frozenset[tuple[str, float]]] = Counter()
    placed = 0
    for request in requests:
        wanted = as_ray_resources(request)
        kind = frozenset(wanted.items())
        # Nodes only fill up: where one like it found no room, this one finds none either.
        while tried[kind] < len(free):
            node = free[tried[kind]]
            # Fractions of a GPU leave a little less than they should when they are taken away one by one.
            if all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in wanted.items()):
                for name, amount in wanted.items():
                    node[name] -= amount
                placed += 1
                break
            tried[kind] += 1
    return placed


def why_infeasible(request: Resources, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """None if some node could hold the request when idle, otherwise what is missing and how much there is."""
    wanted = as_ray_resources(request)
    if any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        return None
    for name, amount in wanted.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if largest < amount:
            return f"{field_of(name)} is {amount:g}, but no node has more than {largest:g}"
    return f"no single node has {', '.join(f'{amount:g} {name}' for name, amount in wanted.items())} together"


def field_of(resource: str) -> str:
    """The config field behind a Ray resource name."""
    return {"CPU": "resources.num_cpus", "GPU": "resources.num_gpus"}.get(resource, f"resources.custom.{resource}")

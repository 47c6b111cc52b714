"""Connecting to Ray: a private cluster on this machine, or the one the user named."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.execution.head import ended_with_head
from orchestrator.execution.leftovers import ended_with_driver
from orchestrator.plan.errors import ClusterError, ResourcesError
from orchestrator.plan.fitness import socket_excess
from orchestrator.plan.jobs import PlannedJob, Request
from orchestrator.plan.policies import Node, as_ray_resources, why_unplaceable
from workloads.config import Resources
from workloads.errors import ConfigError
from workloads.locks import locked

OBJECT_STORE_BYTES = 200 * 2**20
"""Only descriptions, records and generated batches travel through Ray; its default is a third of the memory."""

ANSWER_TIMEOUT_S = 10.0
"""Within which a head takes a connection, however busy it is."""

STARTED_LATE = "timed out during startup"
"""What Ray says of a node that was not there in its time."""

START_TURN_TIMEOUT_S = 120.0
"""How long a private cluster waits for others of this user to have started; then it starts all the same."""


def local_node() -> dict[str, float]:
    """What this machine offers a private cluster."""
    import torch

    # The cores this process may use, which a container or taskset may have made fewer than there are.
    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


def refuse_infeasible(jobs: Sequence[PlannedJob], nodes: Sequence[Mapping[str, float]], where: str) -> None:
    """Raise ResourcesError for the first job that no node could hold even when idle; Ray would wait for ever."""
    for job in jobs:
        reason = why_unplaceable(job, nodes)
        if reason is not None:
            raise ResourcesError(f"{job.name}: execution.{reason} ({where}); ask for less or join a larger node")


@contextmanager
def connect(address: str | None, jobs: Sequence[PlannedJob] = (), **local_options: Any) -> Iterator[None]:
    """A Ray connection for the block: to `address`, or to a private cluster started here and ended with the block.

    Raises ResourcesError before anything is started if no node can ever hold one of the jobs, and ClusterError if
    the address does not answer; ConfigError if it is that of a job server.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():  # a run within a comparison
        refuse_infeasible(jobs, alive_nodes(), "in the connected cluster")
        yield
        return
    if address is not None and address.startswith(("http://", "https://")):
        # Ray's pages on jobs have people export it as RAY_ADDRESS.
        raise ConfigError(
            f"{address} is where a cluster takes jobs, not where its nodes meet; submit the run there (ray job submit "
            "--working-dir . -- rememe train ...), or give --address HOST:6379 of its head"
        )
    if address is not None:
        _check_answers(address)
    else:
        node = {name: amount for name, amount in local_node().items() if amount}
        refuse_infeasible(jobs, [node], "on this machine")
        temp_dir = _temp_dir()
    import ray
    import ray.exceptions

    # Ray's notices and the prints of workers would run through the display.
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        # A bare ray.init() would attach to any cluster this machine has ever run, alive or not.
        # Nobody looks at a private cluster's dashboard, which takes about 135 MB.
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        options |= {"num_cpus": int(node["CPU"]), "num_gpus": int(node.get("GPU", 0))} | temp_dir | local_options
    else:
        options["address"] = address
    is_private = address is None
    with ended_with_driver() if is_private else nullcontext():
        try:
            with _turn_to_start() if is_private else nullcontext():
                ray.init(**options)
        # Errors of gRPC are of none of our kinds either.
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise unreachable(address or "local", error) from None
        except Exception as error:  # of no kind of its own
            if STARTED_LATE not in str(error):
                raise
            raise ClusterError(
                "Ray did not start in its time on this machine, which is busy or short of memory; run the same command "
                "again"
            ) from None
        try:
            if address is not None:
                refuse_infeasible(jobs, alive_nodes(), f"in the cluster at {address}")
            with ended_with_head() if is_private else nullcontext():
                yield
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself waits for most of a minute for an address where nothing is."""
    if address in {"auto", "local"} or address.startswith("ray://"):
        return
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host = port = None
    if not host or not port:
        raise ConfigError(f"--address is {address!r}, but the nodes of a cluster meet at an address like HEAD:6379")
    try:
        socket.create_connection((host, port), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({error}); check the address") from None


def unreachable(address: str, error: Exception) -> ClusterError:
    """What to say of an error of ray.init()."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Version mismatch" in str(error):
        there = [line for line in lines if line.startswith(("Ray:", "Python:"))]
        return ClusterError(
            f"the cluster at {address} has {', '.join(there[:2])}, this machine {', '.join(there[2:])}; "
            "install here what the cluster has, or the other way round"
        )
    # Ray says the same of a wrong token as of no cluster, so both are named.
    return ClusterError(
        f"no Ray cluster answers at {address} ({lines[0] if lines else type(error).__name__}); check the address, and "
        "that RAY_AUTH_MODE and the token are those of the cluster"
    )


def _temp_dir() -> dict[str, str]:
    """Where Ray is to keep its sockets, if it must not be where it would: it ends in a traceback about AF_UNIX.

    Raises ConfigError if the user asked for a directory that is too long for them.
    """
    given = os.environ.get("RAY_TMPDIR")
    if given is None:
        return {"_temp_dir": "/tmp/ray"} if socket_excess(tempfile.gettempdir(), os.getpid()) else {}
    if excess := socket_excess(given, os.getpid()):
        raise ConfigError(
            f"RAY_TMPDIR is {given}, {excess} bytes too long for the paths of Ray's sockets; set it to a shorter "
            "directory, for instance RAY_TMPDIR=/tmp"
        )
    return {}


@contextmanager
def _turn_to_start() -> Iterator[None]:
    """One private cluster of a user starts at a time: two that start at once may choose the same ports."""
    file = Path(tempfile.gettempdir()) / f"rememe-{os.getuid()}-ray-start.lock"
    with ExitStack() as turn:
        with suppress(OSError):  # a courtesy: without it, or after waiting too long, a start only risks a port
            turn.enter_context(locked(file, timeout_s=START_TURN_TIMEOUT_S, if_supported=True))
        yield


def with_resources(remote: Any, resources: Resources) -> Any:
    """A remote function or actor class that asks for these of the cluster.

    Of the cluster, not of what a configuration of a search holds, which is nothing.
    """
    # DEFAULT keeps out of the placement group of a trial, into which Tune puts all that the trial starts.
    return remote.options(
        **_amounts(resources), label_selector=resources.label_selector or None, scheduling_strategy="DEFAULT"
    )


def _amounts(resources: Resources) -> dict[str, Any]:
    wanted = as_ray_resources(resources)
    # 0 CPUs are said too: a task, or an actor with a GPU, of which nothing is said takes one.
    return {"num_cpus": wanted.pop("CPU", 0), "num_gpus": wanted.pop("GPU", 0), "resources": wanted or None}


def reserve(request: Request) -> Any:
    """A placement group with a place for each worker: Ray gives all of them or none, and an autoscaler sees it whole.

    None where there is nothing to reserve.
    """
    from ray.util import placement_group

    resources, num_workers = request.resources, request.num_workers
    if not (bundle := as_ray_resources(resources)):
        return None
    selectors = [resources.label_selector] * num_workers if resources.label_selector else None
    return placement_group([bundle] * num_workers, strategy=request.placement, bundle_label_selector=selectors)


def is_given(place: Any) -> bool:
    """Whether Ray has made a reservation."""
    from ray.util import placement_group_table

    return place is None or placement_group_table(place)["state"] == "CREATED"


def in_place(remote: Any, resources: Resources, group: Any, index: int) -> Any:
    """A remote actor class for one of the places that were reserved."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return remote.options(**_amounts(resources), scheduling_strategy=strategy)


def alive_nodes() -> list[Node]:
    """Total resources and labels of every node of the connected cluster."""
    return _nodes_but(set())


def require_nodes() -> None:
    """Raise ClusterError if there is no live node: what waits then waits for ever."""
    if not alive_nodes():
        raise ClusterError(
            "the last node of the cluster is gone (killed, or out of memory?); what was done so far is kept, run the "
            "same command again to continue"
        )


def staying_nodes() -> list[Node]:
    """The live nodes that are not about to be taken away."""
    return _nodes_but(leaving_nodes())


def _nodes_but(node_ids: Set[str]) -> list[Node]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in node_ids]
    return [Node(node["Resources"], node.get("Labels", {})) for node in alive]


def leaving_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away (preempted, or sent SIGTERM); Ray starts nothing more there."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def died_with_node(actor_id: str) -> bool:
    """Whether Ray says of a dead actor that its node took it along, be it that it only waited there for a process."""
    from ray._private.state import actors
    from ray.core.generated.common_pb2 import ActorDiedErrorContext

    cause = actors(actor_id).get("DeathCause")
    return cause is not None and cause.actor_died_error_context.reason == ActorDiedErrorContext.NODE_DIED


def dead_nodes() -> set[str]:
    """Ids of the nodes that were part of the cluster."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}

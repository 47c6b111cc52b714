"""Ray tasks: sampling and measuring on every slot of the cluster.

The unit of sampling is a fixed batch, so the images do not depend on how many slots there are.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.execution.cluster import alive_nodes, require_nodes, staying_nodes, with_resources
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.policies import num_slots, why_infeasible
from orchestrator.store.storage import Folder
from workloads.config import ProtocolConfig, Resources
from workloads.config.evaluation import HeldOutSpec
from workloads.errors import RememeError
from workloads.imports import fast_imports

if TYPE_CHECKING:
    from pathlib import Path

    from workloads.analysis.curves import LossCurve
    from workloads.data.prepared import PreparedDataset
    from workloads.ensemble import Ensemble
    from workloads.evaluation.protocol import Score
    from workloads.evaluation.samples import SampleStore

_log = logging.getLogger(__name__)

MIN_IN_FLIGHT = 64
"""Batches submitted ahead on a small cluster; on a large one, two for each of its slots: enough to keep it busy, few
enough not to fill the driver's memory."""

LOOK_INTERVAL_S = 5.0
"""At the nodes, while no task ends."""

MAX_RETRIES = 3
"""A batch whose worker died is drawn again elsewhere; it comes out the same."""


def _worker() -> ModuleType:
    with fast_imports():
        from orchestrator.execution import worker
    return worker


@ray.remote(max_retries=MAX_RETRIES)  # type: ignore[untyped-decorator]
def _generate(*arguments: Any) -> Any:
    return _worker().generate(*arguments)


@ray.remote(max_retries=MAX_RETRIES)  # type: ignore[untyped-decorator]
def _score(*arguments: Any) -> Any:
    return _worker().score(*arguments)


@ray.remote(max_retries=MAX_RETRIES)  # type: ignore[untyped-decorator]
def _curve(*arguments: Any) -> Any:
    return _worker().curve(*arguments)


@ray.remote(max_retries=MAX_RETRIES)  # type: ignore[untyped-decorator]
def _latencies(*arguments: Any) -> Any:
    return _worker().latencies(*arguments)


def generate_samples(
    ensemble: "Ensemble",
    protocol: ProtocolConfig,
    out: "SampleStore",
    *,
    resources: Resources,
    wait_timeout_s: float,
    folder: Folder | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the batches `out` lacks, each with `resources` of the connected cluster, and write them as they come.

    Raises ClusterError after wait_timeout_s without a node that could hold one; so does what follows.
    folder: where nodes find the ensemble that do not see its directory.
    """
    from workloads.evaluation.generate import batch_indices

    missing = out.missing(protocol)
    num_batches = len(batch_indices(protocol))
    num_done = num_batches - len(missing)
    task = with_resources(_generate, resources)
    num_ahead = max(MIN_IN_FLIGHT, 2 * num_slots([resources] * num_batches, alive_nodes()))
    in_flight: dict[ray.ObjectRef, int] = {}
    # Taken from the end, so that batches are drawn in their order.
    waiting = list(reversed(missing))

    def tell() -> None:
        if on_progress is not None:
            on_progress(min(num_done * protocol.batch_size, protocol.num_samples), protocol.num_samples)

    if waiting:
        tell()
    while waiting or in_flight:
        while waiting and len(in_flight) < num_ahead:
            index = waiting.pop()
            in_flight[task.remote(folder or ensemble.path, ensemble.fingerprint, protocol, index, resources.device)] = (
                index
            )
        for reference in _ended(in_flight, resources, wait_timeout_s):
            out.write(in_flight.pop(reference), _take(reference))
            num_done += 1
        tell()


def _ended(references: Iterable[ray.ObjectRef], resources: Resources, wait_timeout_s: float) -> list[ray.ObjectRef]:
    """Those of some tasks that have ended, waiting for the first. Says it if they wait for what no live node has."""
    asked, since_s = list(references), None
    while True:
        ended: list[ray.ObjectRef] = ray.wait(asked, timeout=LOOK_INTERVAL_S)[0]
        if ended:
            return ended
        require_nodes()
        reason, now_s = why_infeasible(resources, staying_nodes()), time.monotonic()
        if reason is None:
            since_s = None
        elif since_s is None:
            since_s = now_s
            _log.warning("%d tasks wait: execution.%s", len(asked), reason)
        elif now_s - since_s > wait_timeout_s:
            raise ClusterError(
                f"{len(asked)} tasks were given up: execution.{reason}, for {wait_timeout_s:g} s "
                "(execution.wait_timeout_s); what was done so far is kept, run the same command again to continue"
            )


def _result(reference: ray.ObjectRef, resources: Resources, wait_timeout_s: float) -> Any:
    _ended([reference], resources, wait_timeout_s)
    return _take(reference)


def _take(reference: ray.ObjectRef) -> Any:
    """What a task that has ended returns; what went wrong in the worker is raised as it was raised there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, RememeError) else error from None
    except RayError as error:
        raise ClusterError(
            f"a task was given up: {str(error).splitlines()[0]}; what was done so far is kept, "
            "run the same command again to continue"
        ) from None


def score_on_cluster(
    samples: "SampleStore",
    reference: "PreparedDataset",
    protocol: ProtocolConfig,
    *,
    cache_dir: "Path",
    resources: Resources,
    wait_timeout_s: float,
    **options: Any,
) -> "Score":
    """evaluate_samples in a task with `resources`, for a driver that holds none."""
    options["device"] = resources.device
    asked = with_resources(_score, resources).remote(samples, reference.path, protocol, cache_dir, options)
    score: Score = _result(asked, resources, wait_timeout_s)
    return score


def measure_curves(
    jobs: Sequence[PlannedJob], folders: Sequence[Folder], data: Folder, spec: HeldOutSpec, wait_timeout_s: float
) -> "list[LossCurve]":
    """The held-out loss of every finished job at every timestep, measured side by side on the cluster."""
    asked = []
    for job, folder in zip(jobs, folders, strict=True):
        resources = job.resources
        task = with_resources(_curve, resources)
        asked.append(task.remote(folder, job.job, data, spec, resources.device, resources.num_threads))
    return [_result(one, job.resources, wait_timeout_s) for one, job in zip(asked, jobs, strict=True)]


def latencies_s(ensemble: Folder, resources: Resources, wait_timeout_s: float) -> list[float]:
    """Seconds of one call of each expert for one image, measured in one task with `resources`."""
    asked = with_resources(_latencies, resources).remote(ensemble, resources.device)
    found: list[float] = _result(asked, resources, wait_timeout_s)
    return found

"""Sampling on every slot of the cluster. The unit is a fixed batch, so the images do not depend on how many slots."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.errors import ClusterError
from orchestrator.policies import as_ray_resources
from workloads.config import ProtocolConfig, Resources
from workloads.ensemble import Ensemble
from workloads.errors import RememeError
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.samples import SampleStore

MAX_IN_FLIGHT = 64
"""Batches submitted ahead: enough to keep a cluster busy, few enough not to fill the driver's memory."""

MAX_RETRIES = 3
"""A batch whose worker died is drawn again elsewhere; it comes out the same."""


@lru_cache(maxsize=1)
def _load(path: Path, fingerprint: str, device: str) -> Ensemble:
    """One ensemble per worker process; the fingerprint makes a retrained one in the same place another."""
    import torch

    torch.set_num_threads(1)  # the last bits of a result depend on the number of threads
    ensemble = Ensemble.load(path, device)
    assert ensemble.fingerprint == fingerprint
    return ensemble


@ray.remote(max_retries=MAX_RETRIES)  # type: ignore[untyped-decorator]
def _generate(path: Path, fingerprint: str, protocol: ProtocolConfig, index: int, device: str) -> np.ndarray:
    ensemble = _load(path, fingerprint, device)
    images, _ = generate_batch(ensemble, protocol, batch_indices(protocol)[index])
    return images.numpy()


def generate_samples(
    ensemble: Ensemble,
    protocol: ProtocolConfig,
    out: SampleStore,
    *,
    resources: Resources,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the batches `out` lacks, each with `resources` of the connected cluster, and write them as they come."""
    missing = out.missing(protocol)
    num_batches = len(batch_indices(protocol))
    num_done = num_batches - len(missing)
    wanted = as_ray_resources(resources)
    task = _generate.options(num_cpus=wanted.pop("CPU", 0), num_gpus=wanted.pop("GPU", 0), resources=wanted or None)
    device = "cuda" if resources.num_gpus > 0 else "cpu"
    in_flight: dict[ray.ObjectRef, int] = {}
    waiting = list(reversed(missing))
    while waiting or in_flight:
        while waiting and len(in_flight) < MAX_IN_FLIGHT:
            index = waiting.pop()
            in_flight[task.remote(ensemble.path, ensemble.fingerprint, protocol, index, device)] = index
        finished, _ = ray.wait(list(in_flight), num_returns=1)
        for reference in finished:
            out.write(in_flight.pop(reference), _take(reference))
            num_done += 1
        if on_progress is not None:
            on_progress(min(num_done * protocol.batch_size, protocol.num_samples), protocol.num_samples)


def _take(reference: ray.ObjectRef) -> np.ndarray:
    """A drawn batch; what went wrong in the worker is raised as it was raised there."""
    try:
        images: np.ndarray = ray.get(reference)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, RememeError) else error from None
    except RayError as error:
        raise ClusterError(
            f"sampling was given up: {str(error).splitlines()[0]}; the batches drawn so far are kept, "
            "run the same command again to continue"
        ) from None
    return images

"""What the tasks of tasks.py do in their worker processes; whoever submits them needs none of these imports."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.store.storage import Folder, here
from workloads.analysis.curves import LossCurve
from workloads.analysis.held_out import measure_curve
from workloads.analysis.latency import latency_s
from workloads.config import Job, ProtocolConfig
from workloads.config.evaluation import HeldOutSpec
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.protocol import Score
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import evaluate_samples
from workloads.threads import one_thread


@lru_cache(maxsize=1)
def _load(folder: Folder, fingerprint: str, device: str) -> Ensemble:
    """One ensemble per worker process; the fingerprint makes a retrained one in the same place another."""
    ensemble = Ensemble.load(here(folder), device)
    assert ensemble.fingerprint == fingerprint
    return ensemble


def generate(folder: Folder, fingerprint: str, protocol: ProtocolConfig, index: int, device: str) -> np.ndarray:
    """uint8 images (B, C, H, W) of one batch of the protocol."""
    ensemble = _load(folder, fingerprint, device)
    with one_thread():
        images, _ = generate_batch(ensemble, protocol, batch_indices(protocol)[index])
    return images.numpy()


def score(
    samples: SampleStore, reference: Path, protocol: ProtocolConfig, cache_dir: Path, options: dict[str, Any]
) -> Score:
    """evaluate_samples against the data prepared at `reference`."""
    dataset = PreparedDataset(reference)
    dataset.verify_once()  # the disk may be another node's than the driver's
    return evaluate_samples(samples, dataset, protocol, cache_dir=cache_dir, **options)


def curve(folder: Folder, job: Job, data: Folder, spec: HeldOutSpec, device: str, num_threads: int) -> LossCurve:
    """The held-out loss of a finished job at every timestep."""
    return measure_curve(here(folder), job, here(data), spec, device=device, num_threads=num_threads)


def latencies(folder: Folder, device: str) -> list[float]:
    """Seconds of one call of each expert for one image."""
    ensemble = Ensemble.load(here(folder), device)
    return [latency_s(ensemble, interval.lo) for interval in ensemble.intervals]

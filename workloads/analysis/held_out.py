"""The denoising loss of a trained job on images that training never saw."""

from itertools import pairwise
from pathlib import Path

import torch

from workloads.analysis.curves import LossCurve, read_curve
from workloads.config.evaluation import HeldOutSpec
from workloads.config.intervals import Interval
from workloads.config.job import Job
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import CheckpointError, ConfigError
from workloads.places import JobDir
from workloads.sealed import content_hash, write_json
from workloads.training.job import open_data
from workloads.training.loss_by_timestep import loss_by_timestep, uniform_bins
from workloads.training.result import completed
from workloads.training.trainers import trainer_of

CURVE_VERSION = 1
"""Raise it when a change alters what is measured; stored curves then stop matching."""


def held_out_curve(
    work_dir: Path,
    job: Job,
    data_path: Path,
    spec: HeldOutSpec,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
) -> LossCurve:
    """Mean unweighted squared error of the prediction in spec.num_bins equal bins of [0, T) (fewer if T is smaller).

    Every network sees the same images and noise. In a remix, each timestep is measured with the expert that owns it.
    Measured once and then read from work_dir, where train_job finished the job. Raises ConfigError if no image was
    held out, CheckpointError if the job is not finished, DamagedFileError if its weights are damaged.
    """
    file = curve_file(work_dir, job, spec)
    curve = read_curve(file)
    if curve is None:
        curve = measure_curve(work_dir, job, data_path, spec, device=device, num_threads=num_threads)
        write_json(file, curve.to_json())
    return curve


def curve_file(work_dir: Path, job: Job, spec: HeldOutSpec) -> Path:
    """Where the curve of a finished job is kept, once it is measured. Raises what held_out_curve does."""
    if job.data.held_out == 0:
        raise ConfigError(
            "data.held_out is 0; set it, for instance to 500, and train again to have images to measure on"
        )
    result = completed(work_dir)
    if result is None or result.key != job.key:
        raise CheckpointError(f"{work_dir} does not hold job {job.name} ({job.key}) finished; train it first")
    determinants = {
        "version": CURVE_VERSION,
        "job": job.key,
        "weights": result.weights_sha256,
        "spec": spec.model_dump(mode="json"),
    }
    return JobDir(work_dir).curves / f"{content_hash(determinants)[:16]}.json"


def measure_curve(
    work_dir: Path,
    job: Job,
    data_path: Path,
    spec: HeldOutSpec,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
) -> LossCurve:
    """held_out_curve of a finished job, measured now; writes nothing."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    dataset = open_data(job, data_path)
    indices = dataset.split(job.data.held_out).held_out
    process = DiffusionProcess(job.diffusion, torch.device(device))
    bins = uniform_bins(job.diffusion.num_timesteps, spec.num_bins)
    edges = (0, *(hi for _, hi in bins))
    totals = [0.0] * len(bins)
    for owned, model in trainer_of(job).trained_networks(work_dir, torch.device(device)):
        parts = {index: part for index, one in enumerate(bins) if (part := _common(one, owned)).num_timesteps > 0}
        curve = loss_by_timestep(
            model,
            process,
            dataset,
            bins=list(parts.values()),
            num_images=min(spec.num_images, len(indices)),
            seed=spec.seed,
            class_conditional=job.data.num_classes is not None,
            indices=indices,
        )
        for (index, part), (_, loss) in zip(parts.items(), curve, strict=True):
            totals[index] += part.num_timesteps * loss
    return LossCurve(edges, tuple(total / (hi - lo) for total, (lo, hi) in zip(totals, pairwise(edges), strict=True)))


def _common(a: Interval, b: Interval) -> Interval:
    """The timesteps of both; hi <= lo if there are none."""
    return Interval(max(a.lo, b.lo), min(a.hi, b.hi))

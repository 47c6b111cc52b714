"""How well every expert of an ensemble denoises at each part of the timestep axis."""

from collections.abc import Callable

from workloads.config.intervals import Interval, IntervalTable
from workloads.data.prepared import PreparedDataset
from workloads.diffusion.process import DiffusionProcess
from workloads.ensemble import Ensemble
from workloads.progress import Progress
from workloads.training.loss_by_timestep import NUM_BINS, Curve, loss_by_timestep, uniform_bins


def ensemble_loss_by_timestep(
    ensemble: Ensemble,
    dataset: PreparedDataset,
    *,
    num_bins: int = NUM_BINS,
    num_images: int = 256,
    seed: int = 0,
    on_progress: Progress = lambda _done, _total: None,
) -> tuple[Curve, ...]:
    """One curve over all of [0, T) per expert, in bins that no interval cuts through: a matrix expert x timestep."""
    process = DiffusionProcess(ensemble.diffusion, ensemble.device)
    bins = aligned_bins(ensemble.intervals, num_bins)
    curves = []
    on_progress(0, len(ensemble.intervals))
    for index in range(len(ensemble.intervals)):
        curves.append(
            loss_by_timestep(
                ensemble.expert(index),
                process,
                dataset,
                bins=bins,
                num_images=num_images,
                seed=seed,
                class_conditional=ensemble.num_classes is not None,
            )
        )
        on_progress(index + 1, len(ensemble.intervals))
    return tuple(curves)


def aligned_bins(intervals: IntervalTable, num_bins: int = NUM_BINS) -> tuple[Interval, ...]:
    """About num_bins bins of [0, T), every interval cut into equal ones of its own."""
    bins: list[Interval] = []
    for lo, hi in intervals:
        share = max(1, round(num_bins * (hi - lo) / intervals.num_timesteps))
        bins += [Interval(lo + left, lo + right) for left, right in uniform_bins(hi - lo, share)]
    return tuple(bins)


def ensemble_loss(
    ensemble: Ensemble,
    dataset: PreparedDataset,
    *,
    num_timesteps: int = 40,
    num_images: int = 256,
    seed: int = 0,
    on_expert: Callable[[], None] = lambda: None,
) -> float:
    """Mean unweighted loss of the expert in charge, over evenly spaced timesteps; on_expert() hears of each.

    Timesteps, images and noise are the same whatever the intervals, so a difference between two ensembles is theirs.
    """
    process, intervals = DiffusionProcess(ensemble.diffusion, ensemble.device), ensemble.intervals
    total, count = 0.0, min(num_timesteps, intervals.num_timesteps)
    timesteps = [(2 * index + 1) * intervals.num_timesteps // (2 * count) for index in range(count)]
    for index, (lo, hi) in enumerate(intervals):
        if own := [Interval(t, t + 1) for t in timesteps if lo <= t < hi]:
            curve = loss_by_timestep(
                ensemble.expert(index),
                process,
                dataset,
                bins=own,
                num_images=num_images,
                seed=seed,
                class_conditional=ensemble.num_classes is not None,
            )
            total += sum(loss for _, loss in curve)
        on_expert()
    return total / count

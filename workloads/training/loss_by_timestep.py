"""How well a network denoises at each part of the timestep axis, on images and noise that are the same for all."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workloads.config.intervals import Interval, IntervalTable, uniform_cuts
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import Batch, BatchStream
from workloads.diffusion.process import DiffusionProcess
from workloads.diffusion.sampling import initial_noise
from workloads.seeding import derive_seed

# Axes: B batch, C channels, H height, W width.

Curve = tuple[tuple[int, float], ...]
"""(middle timestep of a bin, mean loss in the bin), rising in the timestep."""

NUM_BINS = 12
"""Bins that neither 2, 3, 4 nor 6 equal intervals cut through."""

BATCH_SIZE = 64


def loss_by_timestep(
    model: nn.Module,
    process: DiffusionProcess,
    dataset: PreparedDataset,
    *,
    bins: Sequence[Interval] | None = None,
    num_images: int = 256,
    seed: int = 0,
    class_conditional: bool = False,
    indices: np.ndarray | None = None,
) -> Curve:
    """Mean unweighted squared error of the prediction in each bin (None: 12 equal bins of [0, T)).

    Every bin sees the same num_images images (of those at indices, None: of all) with the same noise, at timesteps
    spread evenly over the bin; all are functions of the data and the seed, so curves of different networks differ by
    the networks alone. The model must be on the process's device; a bin of one timestep gives the loss at that
    timestep.
    """
    bins = uniform_bins(process.config.num_timesteps) if bins is None else bins
    totals = [0.0] * len(bins)
    was_training = model.training
    model.eval()
    done = 0
    for batch, noise_BCHW in fixed_examples(dataset, num_images=num_images, seed=seed, indices=indices):
        position_B = torch.arange(done, done + len(noise_BCHW))
        done += len(noise_BCHW)
        for index, (lo, hi) in enumerate(bins):
            t_B = lo + (2 * position_B + 1) * (hi - lo) // (2 * num_images)
            loss_B = _loss(model, process, batch, noise_BCHW, t_B, class_conditional)
            totals[index] += float(loss_B.double().sum())
    model.train(was_training)
    return tuple(((lo + hi - 1) // 2, total / num_images) for (lo, hi), total in zip(bins, totals, strict=True))


def uniform_bins(num_timesteps: int, num_bins: int = NUM_BINS) -> tuple[Interval, ...]:
    """[0, T) in equal bins, fewer if there are fewer timesteps."""
    return tuple(IntervalTable(uniform_cuts(min(num_bins, num_timesteps), num_timesteps), num_timesteps))


def fixed_examples(
    dataset: PreparedDataset,
    *,
    num_images: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    indices: np.ndarray | None = None,
) -> Iterator[tuple[Batch, Tensor]]:
    """num_images shuffled images (of those at indices, None: of all) with one noise each, in batches.

    Which depends on the data, the indices and the seed alone.
    """
    stream = BatchStream(dataset, batch_size=batch_size, seed=derive_seed("examples", seed), indices=indices)
    for start in range(0, num_images, batch_size):
        stop = min(start + batch_size, num_images)
        batch = Batch(*(part[: stop - start] for part in stream.at(start)))
        # A seed per image, so that the size of batches changes nothing.
        noise_seeds = [derive_seed("example noise", seed, position) for position in range(start, stop)]
        yield batch, initial_noise(dataset.shape, noise_seeds)


@torch.inference_mode()
def _loss(
    model: Any, process: DiffusionProcess, batch: Batch, noise_BCHW: Tensor, t_B: Tensor, class_conditional: bool
) -> Tensor:
    device = process.alphas_cumprod_T.device
    x0_BCHW, noise_BCHW, t_B = batch.images_BCHW.to(device), noise_BCHW.to(device), t_B.to(device)
    labels_B = batch.labels_B.to(device) if class_conditional else None
    prediction_BCHW = model(process.add_noise(x0_BCHW, noise_BCHW, t_B), t_B, class_labels=labels_B).sample
    return process.loss(prediction_BCHW.float(), x0_BCHW, noise_BCHW, t_B, weighted=False)

"""Prepared data as the trainer sees them, for people to look at."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workloads.data.latents import load_first_stage
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.grid import sample_grid

MAX_ROWS = 16
"""Classes that are shown; of more, as many spread over all."""


class View(NamedTuple):
    """A grid with a row per class, and what the numbers behind it are like."""

    grid: Image.Image
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float
    decoded: bool
    """Whether the grid shows the numbers themselves or, of latents, what their VAE makes of them."""


def look_at(dataset: PreparedDataset, num_columns: int) -> View:
    """The first images of each class, out of the stream of batches that training takes."""
    labels = dataset.labels(np.arange(dataset.num_images))
    present = np.unique(labels)
    rows = present[np.linspace(0, len(present) - 1, min(MAX_ROWS, len(present))).astype(int)]
    chosen = [np.flatnonzero(labels == label)[:num_columns] for label in rows]
    tensors = [_as_trained_on(dataset, indices) for indices in chosen]
    every = torch.cat(tensors)
    decoder = _decoder(dataset)
    shown = [_padded(_pixels(tensor, dataset, decoder), num_columns) for tensor in tensors]
    names = [f"{dataset.class_names[label]} ({int((labels == label).sum())})" for label in rows]
    grid = sample_grid(np.concatenate(shown), num_columns=num_columns, labels=names)
    return View(
        grid,
        shape=tuple(every.shape[1:]),
        low=float(every.min()),
        high=float(every.max()),
        mean=float(every.mean()),
        std=float(every.std(correction=0)),
        decoded=decoder is not None,
    )


def _as_trained_on(dataset: PreparedDataset, indices: np.ndarray) -> Tensor:
    stream = BatchStream(dataset, batch_size=len(indices), seed=0, indices=indices)
    return stream.at(0).images_BCHW


def _decoder(dataset: PreparedDataset) -> Path | None:
    latent = dataset.manifest.latent
    return latent.vae if latent is not None and latent.vae.is_dir() else None


def _pixels(images_BCHW: Tensor, dataset: PreparedDataset, vae: Path | None) -> np.ndarray:
    latent = dataset.manifest.latent
    if latent is not None and vae is not None:
        model = load_first_stage(vae)
        with torch.inference_mode():
            images_BCHW = torch.cat([model.decode(latent.unscale(one[None])).sample for one in images_BCHW])
    elif latent is not None:
        # The first channel, for want of the VAE: two deviations from black to white.
        images_BCHW = images_BCHW[:, :1] / 2
    scaled = ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.numpy()


def _padded(images_BCHW: np.ndarray, num_columns: int) -> np.ndarray:
    missing = num_columns - len(images_BCHW)
    return np.pad(images_BCHW, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=32)

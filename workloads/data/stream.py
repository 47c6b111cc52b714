"""Batches for training: which image comes when is a function of (seed, images_seen), nothing else."""

import queue
import threading
import time
from collections.abc import Generator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workloads.data.prepared import PreparedDataset
from workloads.seeding import derive_seed

# Axes: B batch, C channels, H height, W width.

NUM_PREFETCHED = 4
"""Batches made ahead: they bridge a slow read, and each takes memory."""


class Batch(NamedTuple):
    """One rank's share of a step."""

    images_BCHW: Tensor
    """float32; pixels in [-1, 1], or latents: as stored, or drawn from the distributions that are stored."""

    labels_B: Tensor
    """int64 class indices."""


class BatchStream:
    """An endless, shuffled sequence of epochs, cut into batches of world_size * batch_size images.

    Rank r takes the r-th part of each, so W ranks see together what one rank with W times the batch sees.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
        indices: np.ndarray | None = None,
    ) -> None:
        """indices: the images an epoch consists of; None: all."""
        self._dataset = dataset
        self._indices = np.arange(dataset.num_images) if indices is None else indices
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._flip = flip
        # Two, for a batch may reach into the next epoch.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self.waited_s = 0.0
        """Total time a consumer of iterate() has waited."""

    def at(self, images_seen: int) -> Batch:
        """The batch of the step that starts when images_seen images have been seen by all ranks together."""
        indices, mirrored = self.places_at(images_seen)
        labels_B = torch.from_numpy(self._dataset.labels(indices))
        if self._dataset.has_posterior:
            return Batch(self._draw_latents(indices, mirrored & self._flip, images_seen), labels_B)
        images_BCHW = torch.from_numpy(self._dataset.images(indices))
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = images_BCHW.float().div_(127.5).sub_(1)
        if self._flip:
            images_BCHW[mirrored] = images_BCHW[mirrored].flip(-1)
        return Batch(images_BCHW, labels_B)

    def _draw_latents(self, indices: np.ndarray, mirrored: np.ndarray, images_seen: int) -> Tensor:
        """A draw from each latent's distribution, by the image's position in training: each epoch has its own."""
        mean_BCHW, std_BCHW = self._dataset.posteriors(indices, mirrored)
        seed = derive_seed("latents", self._seed)
        generators = [np.random.default_rng((seed, position)) for position in self._positions(images_seen)]
        noise_BCHW = np.stack([one.standard_normal(self._dataset.shape, np.float32) for one in generators])
        return torch.from_numpy(mean_BCHW + std_BCHW * noise_BCHW)

    def _positions(self, images_seen: int) -> np.ndarray:
        first = images_seen + self._rank * self._batch_size
        return np.arange(first, first + self._batch_size)

    def places_at(self, images_seen: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images of the data set that batch has, and which of them are mirrored."""
        epochs, offsets = np.divmod(self._positions(images_seen), len(self._indices))
        indices = np.empty(self._batch_size, np.int64)
        mirrored = np.empty(self._batch_size, np.bool_)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, flips = self._epoch(int(epoch))
            indices[here], mirrored[here] = order[offsets[here]], flips[offsets[here]]
        return indices, mirrored

    def iterate(self, images_seen: int = 0) -> Generator[Batch, None, None]:
        """Batches from images_seen on, made ahead of time by one thread; close the generator to end it."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(NUM_PREFETCHED)
        stopped = threading.Event()

        def produce() -> None:
            position = images_seen
            while not stopped.is_set():
                item: Batch | BaseException
                try:
                    item = self.at(position)
                except BaseException as error:  # handed to the consumer, which raises it
                    item = error
                while not stopped.is_set():
                    try:
                        # Not for ever: a closed generator must end the thread.
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                position += self._batch_size * self._world_size

        thread = threading.Thread(target=produce, name="rememe-loader", daemon=True)
        thread.start()
        try:
            while True:
                waiting_since_s = time.perf_counter()
                item = ready.get()
                self.waited_s += time.perf_counter() - waiting_since_s
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of images, and which of its positions are mirrored."""
        generator = np.random.default_rng(derive_seed("data", self._seed, epoch))
        order = self._indices[generator.permutation(len(self._indices))]
        return order, generator.random(len(order)) < 0.5

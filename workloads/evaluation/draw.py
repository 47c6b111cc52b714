"""A few images for people: as a run's protocol draws them or with changes, in memory, shown as a grid."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from workloads.config import ProtocolConfig, RunConfig
from workloads.config.explain import short
from workloads.config.load import validate
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.evaluation.features import TensorImages
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.samples import write_images
from workloads.files import clear_storage_errors
from workloads.grid import sample_grid
from workloads.progress import Progress

# Axes: N images, C channels, H height, W width.

MAX_GRID_COLUMNS = 10


@dataclass(frozen=True)
class Samples:
    """Images and how they were drawn; a notebook shows them as a grid."""

    images_NCHW: np.ndarray
    """uint8; of a network that is told classes, image i is of class i modulo their number."""

    protocol: ProtocolConfig

    def grid(self) -> Image.Image:
        """All side by side."""
        return sample_grid(self.images_NCHW, num_columns=min(len(self.images_NCHW), MAX_GRID_COLUMNS))

    def write_grid(self, file: Path) -> None:
        """The same as a PNG. StorageError if the disk is full."""
        with clear_storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.grid().save(file, format="png")

    def write(self, folder: Path) -> None:
        """Each as 000000.png, 000001.png, .... StorageError if the disk is full."""
        write_images(TensorImages(torch.from_numpy(self.images_NCHW)), folder)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.grid().save(file, format="png")
        return file.getvalue()


def sampling_protocol(config: RunConfig, num: int, seed: int, sampling: dict[str, Any]) -> ProtocolConfig:
    """The run's protocol with these changes. ConfigError if they do not go with the run."""
    if not isinstance(num, int | np.integer) or isinstance(num, bool) or num < 1:
        raise ConfigError(f"num is {short(num)}; it must be a whole number of images, at least 1")
    num = int(num)
    raw = config.model_dump(mode="json")
    evaluation = raw["evaluation"]
    raw["evaluation"] = evaluation | {
        # A protocol has two at least, for a covariance; a single image can be drawn all the same.
        "num_samples": max(2, num),
        "seed": seed,
        "sampling": evaluation["sampling"] | sampling,
    }
    protocol = validate(RunConfig, raw).evaluation  # checked against the run: steps, classes
    return protocol.model_copy(update={"num_samples": num})


def draw(ensemble: Ensemble, protocol: ProtocolConfig, on_progress: Progress) -> Samples:
    """All images of a protocol, in memory."""
    parts = []
    on_progress(0, protocol.num_samples)
    for indices in batch_indices(protocol):
        images_BCHW, _ = generate_batch(ensemble, protocol, indices)
        parts.append(images_BCHW.numpy())
        on_progress(indices.stop, protocol.num_samples)
    return Samples(np.concatenate(parts), protocol)

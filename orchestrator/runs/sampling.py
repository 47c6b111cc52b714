"""Images from a trained ensemble, as its run's protocol draws them or with changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.analysis.grid import sample_grid
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.load import validate
from workloads.ensemble import Ensemble
from workloads.evaluation.features import TensorImages
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.files import clear_storage_errors

MAX_GRID_COLUMNS = 10


def default_device() -> str:
    """Where to draw and measure in this process."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def sampling_protocol(config: RunConfig, num: int, seed: int, sampling: dict[str, Any]) -> ProtocolConfig:
    """The run's protocol with these changes. ConfigError if they do not go with the run."""
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


def draw_images(ensemble: Ensemble, protocol: ProtocolConfig, on_progress: Callable[[int, int], None]) -> TensorImages:
    """All images of a protocol, in memory."""
    parts = []
    for indices in batch_indices(protocol):
        images_BCHW, _ = generate_batch(ensemble, protocol, indices)
        parts.append(images_BCHW)
        on_progress(indices.stop, protocol.num_samples)
    return TensorImages(torch.cat(parts))


def write_grid(images: TensorImages, file: Path) -> None:
    """All images side by side in one PNG."""
    images_NCHW: np.ndarray = images.images_NCHW.numpy()
    with clear_storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(images_NCHW, num_columns=min(len(images_NCHW), MAX_GRID_COLUMNS)).save(file)

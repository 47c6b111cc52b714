"""`rememe sample`: images from a trained ensemble."""

from pathlib import Path
from typing import Any

from orchestrator.terminal.view import progress
from workloads.analysis.grid import sample_grid
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.load import validate
from workloads.ensemble import Ensemble
from workloads.evaluation.features import TensorImages
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.samples import write_images

MAX_GRID_COLUMNS = 10


def sample_images(
    run: Path, *, num: int, seed: int, grid: Path, out: Path | None, sampling: dict[str, Any], device: str | None
) -> None:
    """Draw `num` images as the run's protocol does, with these changes, into a grid and, if asked for, a folder."""
    import numpy as np
    import torch

    ensemble = Ensemble.load(run, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    protocol = _protocol(ensemble.config, num, seed, sampling)
    parts = []
    with progress("sampling", "images") as advance:
        for indices in batch_indices(protocol):
            images_BCHW, _ = generate_batch(ensemble, protocol, indices)
            parts.append(images_BCHW.numpy())
            advance(indices.stop, num)
    images_NCHW = np.concatenate(parts)
    grid.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(images_NCHW, num_columns=min(num, MAX_GRID_COLUMNS)).save(grid)
    print(f"{grid}: {num} images, seed {seed}, {protocol.sampling.sampler} with {protocol.sampling.num_steps} steps")
    if out is not None:
        write_images(TensorImages(torch.from_numpy(images_NCHW)), out)
        print(f"{out}: one PNG each")


def _protocol(config: RunConfig, num: int, seed: int, sampling: dict[str, Any]) -> ProtocolConfig:
    raw = config.model_dump(mode="json")
    evaluation = raw["evaluation"]
    raw["evaluation"] = evaluation | {
        "num_samples": max(2, num),
        "seed": seed,
        "sampling": evaluation["sampling"] | sampling,
    }
    protocol = validate(RunConfig, raw).evaluation  # checked against the run: steps, classes
    return protocol.model_copy(update={"num_samples": num})

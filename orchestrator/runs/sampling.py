"""Images from a trained ensemble that a user names."""

from pathlib import Path

import torch

from orchestrator.terminal.progress import progress
from workloads.ensemble import Ensemble
from workloads.evaluation.draw import Samples


def default_device() -> str:
    """Where to draw and measure in this process."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def sample_run(
    run: Path,
    num: int,
    *,
    seed: int,
    sampler: str | None,
    num_steps: int | None,
    guidance_scale: float | None,
    device: str | None,
) -> Samples:
    """Ensemble.sample with a progress bar; None of a setting: the run's own protocol's."""
    ensemble = Ensemble.load(run, device or default_device())
    with progress("sampling", "images") as advance:
        return ensemble.sample(
            num,
            seed=seed,
            sampler=sampler,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            on_progress=advance,
        )

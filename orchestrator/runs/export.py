"""Trained experts in forms that need less, or nothing, of rememe."""

from pathlib import Path
from typing import Any

from workloads.ensemble import Ensemble, bake
from workloads.errors import ConfigError
from workloads.files import new_directory
from workloads.places import EnsembleDir
from workloads.progress import Progress


def bake_run(run: Path, out: Path, on_progress: Progress) -> int:
    """A remix's experts as plain networks, in an ensemble that samples without mixing; how many."""
    ensemble = Ensemble.load(run)
    if not ensemble.is_mixed:
        raise ConfigError(f"{run} is no remix: its {len(ensemble.intervals)} experts are plain networks already")
    _refuse_existing(out)
    bake(ensemble, out, on_progress)
    return len(ensemble.intervals)


def export_run(run: Path, out: Path, on_progress: Progress) -> None:
    """Every expert as a diffusers model; a DiT as diffusers' own DiTTransformer2DModel."""
    from workloads.models.dit import DiT, to_diffusers

    ensemble = Ensemble.load(run)
    _refuse_existing(out)
    with new_directory(out) as scratch:
        for index in range(len(ensemble.intervals)):
            model: Any = ensemble.expert(index)
            if isinstance(model, DiT):
                try:
                    model = to_diffusers(model)
                except ValueError as error:
                    raise ConfigError(f"{run} cannot be exported: {error}") from None
            model.save_pretrained(EnsembleDir(scratch).expert(index))
            on_progress(index + 1, len(ensemble.intervals))
        (scratch / "intervals.txt").write_text(
            "".join(
                f"{EnsembleDir(scratch).expert(index).name} {interval}\n"
                for index, interval in enumerate(ensemble.intervals)
            )
        )


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; name a directory to make")

"""`rememe bake` and `rememe export`: trained experts in forms that need less, or nothing, of rememe."""

from pathlib import Path
from typing import Any

from orchestrator.terminal.view import progress
from workloads.ensemble import REMIX, Ensemble, bake
from workloads.errors import ConfigError
from workloads.files import new_directory


def bake_run(run: Path, out: Path) -> None:
    """A remix's experts as plain networks, in an ensemble that samples without mixing."""
    ensemble = Ensemble.load(run)
    if not (ensemble.path / REMIX).is_dir():
        raise ConfigError(f"{run} is no remix: its {len(ensemble.intervals)} experts are plain networks already")
    _refuse_existing(out)
    with progress("baking", "experts") as advance:
        bake(ensemble, out, advance)
    print(f"{out}: {len(ensemble.intervals)} plain networks; use it as a run: rememe sample {out}")


def export_run(run: Path, out: Path) -> None:
    """Every expert as a diffusers model; a DiT as diffusers' own DiTTransformer2DModel."""
    from workloads.models.dit import DiT, to_diffusers

    ensemble = Ensemble.load(run)
    _refuse_existing(out)
    with new_directory(out) as scratch, progress("exporting", "experts") as advance:
        for index in range(len(ensemble.intervals)):
            model: Any = ensemble.expert(index)
            if isinstance(model, DiT):
                try:
                    model = to_diffusers(model)
                except ValueError as error:
                    raise ConfigError(f"{run} cannot be exported: {error}") from None
            model.save_pretrained(scratch / f"expert_{index:02d}")
            advance(index + 1, len(ensemble.intervals))
        (scratch / "intervals.txt").write_text(
            "".join(f"expert_{index:02d} {interval}\n" for index, interval in enumerate(ensemble.intervals))
        )
    print(f"{out}: one diffusers model per expert, and intervals.txt with the timesteps each is for")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; name a directory to make")

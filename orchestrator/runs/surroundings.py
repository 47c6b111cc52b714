"""What a command needs around it before anything begins: a directory that takes results, an address of MLflow."""

import os
import tempfile
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.tracking.address import tracking_uri
from workloads.errors import ConfigError
from workloads.files import working_directory


def open_for_results(runs_dir: Path) -> RunsDir:
    """The runs directory, ready to be written. ConfigError if it, or the address of MLflow, cannot take results."""
    require_writable(runs_dir)
    tracking_uri(runs_dir)
    return RunsDir(runs_dir)


def require_writable(runs_dir: Path) -> None:
    """Make the runs directory if it is not there. ConfigError if nothing can be written into it."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        _write_into(runs_dir)
    except OSError as error:
        raise ConfigError(f"--runs-dir {runs_dir} cannot be written ({error.strerror}); choose another") from None


def _write_into(folder: Path) -> None:
    """OSError unless it can be: tried, for rights say nothing of a read-only disk or of what mounts there."""
    tempfile.TemporaryFile(dir=folder).close()


def stand_somewhere(place: Path) -> None:
    """Go to a directory that exists, if the working directory does not any more: what is imported later asks for it."""
    if working_directory() is None:
        os.chdir(place)


def shown(path: Path) -> Path:
    """Relative to where the user stands, where that is shorter."""
    here = working_directory()
    return path.relative_to(here) if here is not None and path.is_relative_to(here) else path


def require_makeable(*places: Path | None) -> None:
    """ConfigError unless a file or a folder can be made at each of these: before the work, which may take long."""
    for place in places:
        if place is None:
            continue
        folder = place.absolute() if place.is_dir() else place.absolute().parent
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        try:
            _write_into(existing)
        except OSError as error:
            raise ConfigError(
                f"{place} cannot be made: {existing} takes no files ({error.strerror}); choose another place"
            ) from None


def require_places(grid: Path, folder: Path | None, num: int) -> None:
    """ConfigError unless num samples may be written there, and only they will be: before they are drawn."""
    if grid.is_dir():
        raise ConfigError(f"{grid} is a directory, but --grid is one picture; name a file in it, as {grid}/samples.png")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, but --out is a folder for a picture each; give another name")
    require_makeable(grid, folder)
    if folder is None:
        return
    from workloads.evaluation.samples import pictures_beyond  # with torch, which is slow to load

    if others := pictures_beyond(folder, num):
        raise ConfigError(
            f"{folder} holds {len(others)} other picture(s), as {others[0]}, which would be taken for samples; "
            "name another folder for --out, or empty this one"
        )

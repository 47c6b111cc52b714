"""Runs that lie in a storage: brought into the runs directory, used like any other, and what changed sent back."""

import atexit
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.store.storage import Storage


@contextmanager
def run_at_hand(run: Path, runs_dir: Path, storage: str | None, *, is_changed: bool = False) -> Iterator[Path]:
    """The directory of a run that a user names: itself or, with a storage's URI, one below runs_dir that holds it.

    is_changed: whether the block adds to it; then the storage has that afterwards. ConfigError if there is no such run,
    StorageError if the storage does not answer.
    """
    if storage is None:
        yield run
        return
    kept = Storage.at(storage)
    here = RunsDir(runs_dir).run_named(kept.name_of(str(run)))
    kept.restore_ensemble(here)
    if is_changed:
        kept.restore_run(here)
    yield here.path
    if is_changed:
        kept.keep_run(here)


def runs_to_look_at(runs_dir: Path, storage: str | None) -> RunsDir:
    """A runs directory with what drivers say of runs and studies, or with a storage's URI a copy of that."""
    if storage is None:
        return RunsDir(runs_dir)
    copy = RunsDir(Path(_scratch(storage).name), copy_of=storage)
    Storage.at(storage).restore_standings(copy)
    return copy


@cache
def _scratch(storage: str) -> "tempfile.TemporaryDirectory[str]":  # noqa: ARG001
    """One while this process lives, so that who looks again fetches only what has changed."""
    scratch = tempfile.TemporaryDirectory(prefix="rememe-")
    atexit.register(scratch.cleanup)
    return scratch

"""Runs that lie in a storage: brought into the runs directory, used like any other, and what changed sent back."""

import atexit
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.store.storage import Storage
from workloads.config.explain import nearest
from workloads.errors import ConfigError
from workloads.places import RunDir, require_ensemble

logger = logging.getLogger(__name__)


@contextmanager
def run_at_hand(
    run: Path, runs_dir: Path, storage: str | None, *, is_changed: bool = False, with_scores: bool = False
) -> Iterator[Path]:
    """The directory of a run that a user names: itself or, with a storage's URI, one below runs_dir that holds it.

    is_changed: whether the block adds to it; then the storage has that afterwards. with_scores: whether it reads what
    was measured. ConfigError if there is no such run, StorageError if the storage does not answer.
    """
    if storage is None:
        yield find_trained_run(run, runs_dir)
        return
    kept = Storage.at(storage)
    here = RunsDir(runs_dir).run_named(kept.name_of(str(run)))
    kept.restore_ensemble(here)
    if is_changed:
        kept.restore_run(here)
    elif with_scores:
        kept.restore_scores(here)
    yield here.path
    if is_changed:
        kept.keep_run(here)


def find_trained_run(run: Path, runs_dir: Path) -> Path:
    """A trained run as a user names it: a directory, or the name of one below runs_dir, with or without its hash.

    ConfigError if there is none, with the nearest name; before torch and others are loaded, which takes long.
    """
    if not run.exists() and (len(run.parts) == 1 or run.is_relative_to(runs_dir)):
        planned = find_planned(run.name, RunsDir(runs_dir))
        run = runs_dir / (planned.path.name if planned else run.name)
        if not run.is_dir():
            near = nearest(run.name, [one.path.name for one in RunsDir(runs_dir).all_plans()])
            if near is not None:
                raise ConfigError(f"{run} does not exist; did you mean {runs_dir / near}?")
    require_ensemble(run)
    return run


def find_planned(named: str, runs: RunsDir) -> RunDir | None:
    """A run by its directory or name; by its name without the hash, the one whose plan was written last."""
    given = RunDir(Path(named).absolute())
    if given.plan.is_file():
        return given
    plans = runs.all_plans()
    found = [run for run in plans if run.path.name == named]
    found = found or [run for run in plans if run.path.name.rpartition("-")[0] == named]
    last = max(found, key=lambda run: run.plan.stat().st_mtime, default=None)
    if last is not None and len(found) > 1:
        logger.warning("%d runs are named %s; this is the last, %s", len(found), named, last.path.name)
    return last


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

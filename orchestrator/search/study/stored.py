"""A study that lies in a storage: brought here to be looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from orchestrator.store.storage import Storage


@contextmanager
def study_at_hand(name: str, runs_dir: Path, storage: str | None) -> Iterator[None]:
    """Have a study and what is seen of its runs below runs_dir; with a storage's URI, brought from there.

    What the block changes of the study is there afterwards.
    """
    if storage is None:
        yield
        return
    runs, kept = RunsDir(runs_dir), Storage.at(storage)
    study = runs.study(name)
    if kept.restore_study(study):
        for run in {run for trial in Ledger(runs, name).trials() for run in trial.runs}:
            kept.restore_pictures(runs.run_named(run))
    yield
    kept.keep_study(study)

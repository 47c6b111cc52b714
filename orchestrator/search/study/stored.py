"""A study that lies in a storage: brought here to be looked at."""

from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from orchestrator.store.storage import Storage
from workloads.errors import ConfigError
from workloads.locks import is_locked


def bring_study(name: str, runs: RunsDir, storage: Storage) -> None:
    """Have a study here as it is in a storage, with samples of its runs and what was measured of its experts.

    ConfigError if it is neither there nor here.
    """
    study = runs.study(name)
    # Its driver, on this machine, is ahead of what it has sent.
    if is_locked(study.lock_file) or not storage.restore_study(study):
        if not study.description_file.exists():
            known = ", ".join(storage.study_names()) or "none"
            raise ConfigError(f"no study {name!r} in {storage.shown}; studies there: {known}")
        return
    trials = Ledger(runs, name).trials()
    for run in {run for trial in trials for run in trial.runs}:
        storage.restore_pictures(runs.run_named(run))
    for key in {job.key for trial in trials for job in trial.jobs}:
        storage.restore_curves(runs.job(key))

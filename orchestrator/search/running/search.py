"""`rememe search`: carry out a study, each network trained once; the same command again goes on where it stopped."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.execution.cluster import connect
from orchestrator.execution.load import Loads, watched_loads
from orchestrator.execution.nodes import refuse_unfit_nodes
from orchestrator.execution.stopping import stop_signals
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.places import RunsDir
from orchestrator.runs.configuration import open_storage
from orchestrator.runs.data import prepare_data_of, prepare_reference_of
from orchestrator.runs.status import STUDY_KIND, StatusFile
from orchestrator.runs.surroundings import open_for_results, stand_somewhere
from orchestrator.search.running.csv_file import write_csv
from orchestrator.search.running.display import StudyDisplay, print_study
from orchestrator.search.running.driver import Driver
from orchestrator.search.running.forecast import Forecast, forecast_from_study
from orchestrator.search.running.growth import Growth
from orchestrator.search.running.log import StudyLog
from orchestrator.search.running.runner import TrialRunner
from orchestrator.search.running.tune import run_trials
from orchestrator.search.study.configurations import Configurations, make_sampler
from orchestrator.search.study.feasible import measured_runs, require_affordable, warmup_remark_of
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.stored import bring_study
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial
from orchestrator.search.study.trial_plans import PlansOf, plans_by_point
from orchestrator.store.experts import ExpertStore
from orchestrator.store.remote import Lease
from orchestrator.store.remote_files import RemoteFiles
from orchestrator.store.storage import Storage
from orchestrator.tracking.configuration import log_loads
from orchestrator.tracking.tracker import Tracker, run_url
from workloads.errors import ConfigError, RememeError, StorageError, TakenOverError
from workloads.pipeline import check_comparable, check_score
from workloads.places import RunDir

logger = logging.getLogger(__name__)

NUM_PLANNED = 3
"""Configurations --plan-from proposes, unless told otherwise."""


@dataclass(frozen=True)
class SearchOptions:
    """What a call says besides the study."""

    address: str | None = None
    store_uri: str | None = None
    max_failures: int = 0
    plan_from: str | None = None
    num_planned: int = NUM_PLANNED
    storage_uri: str | None = None


def run_study(study: Study, runs_dir: Path, options: SearchOptions) -> list[Trial]:
    """All configurations of the study, in order. Raises ConfigError before anything starts if it cannot be carried out.

    A configuration that fails is reported and the study goes on, until more than max_failures have.
    """
    configurations = Configurations(study)
    # Mistakes first: nothing is prepared, locked or written for a study that cannot be.
    configurations.check()
    storage = open_storage(configurations.first()[1], options.store_uri, options.storage_uri)
    runs = open_for_results(runs_dir)
    ledger = Ledger(runs, study.name)
    if storage is not None:
        _look_into(storage, study, runs, options)
    identity = study.identity(configurations.first()[1])
    ledger.require_same(identity)
    plans_of = plans_by_point(study, lambda config: prepare_data_of(config, runs).spec(config.data))
    forecast = _prepare(configurations, runs, plans_of, options)
    with ledger.locked(), _sole_driver(ledger, storage) as lease:
        ledger.require_same(identity)
        ledger.begin(identity)
        # One configuration stands for all: hardly any space varies what experts ask for.
        jobs = plans_of(configurations.first()[0], 0)[-1].jobs
        status = StatusFile(RunDir(ledger.dir.path), STUDY_KIND, storage=storage)
        with connect(options.address, jobs), status, Tracker(runs.path) as tracker:
            store = ExpertStore(runs.store, options.store_uri, storage)
            refuse_unfit_nodes(store.site)
            status.doing("searching")
            search = _Search(study, runs, ledger, plans_of, forecast, options, tracker, store, storage, lease)
            every_s = configurations.first()[1].execution.node_metrics_every_s
            with search.logged(), watched_loads(every_s, search.log_loads):
                search.carry_out()
                search.conclude()
    return list(search.driver.trials.values())


def _look_into(storage: Storage, study: Study, runs: RunsDir, options: SearchOptions) -> None:
    """Bring what is to be known first. ConfigError if the study cannot be kept there, or if another of its name is."""
    if study.warm_growth is not None:
        raise ConfigError(
            "--storage does not take a study with warm_growth, whose networks start from directories of this machine; "
            "give a --runs-dir all nodes see"
        )
    storage.check()
    storage.require_same_study(runs.study(study.name))
    if options.plan_from is not None:
        bring_study(options.plan_from, runs, storage)


@contextmanager
def _sole_driver(ledger: Ledger, storage: Storage | None) -> Iterator[Lease | None]:
    """On whichever machine: nobody else carries the study out, and what they have done before is here."""
    if storage is None:
        yield None
        return
    lease = storage.claim_study(ledger.dir)
    try:
        storage.restore_study(ledger.dir)
        yield lease
    finally:
        lease.release()


def _prepare(
    configurations: Configurations, runs: RunsDir, plans_of: PlansOf, options: SearchOptions
) -> Forecast | None:
    """Everything that can be found wrong before Ray starts, and what an earlier study forecasts if one is named."""
    study = configurations.study
    measured = measured_runs(configurations)
    for config in measured:
        check_score(config)
    if options.store_uri is not None:
        RemoteFiles(options.store_uri).check()
    check_comparable(prepare_data_of(measured[0], runs), prepare_reference_of(measured[0], runs))
    require_affordable(configurations, plans_of)
    if remark := warmup_remark_of(configurations):
        logger.warning("%s", remark)
    if options.plan_from is None:
        return None
    return forecast_from_study(study, options.plan_from, runs, num_best=options.num_planned)


class _Search:
    def __init__(
        self,
        study: Study,
        runs: RunsDir,
        ledger: Ledger,
        plans_of: PlansOf,
        forecast: Forecast | None,
        options: SearchOptions,
        tracker: Tracker,
        store: ExpertStore,
        storage: Storage | None,
        lease: Lease | None,
    ) -> None:
        self._study, self._runs, self._ledger, self._options, self._tracker = study, runs, ledger, options, tracker
        self._storage, self._lease, self._is_taken_over = storage, lease, False
        self._report: Path | None = None
        known = ledger.trials()
        self._log = StudyLog(study, tracker, runs, store, plans_of, known)
        self._display = StudyDisplay(study, ledger.dir, known, Configurations(study).count())
        self._runner = TrialRunner(study, runs, options.store_uri, storage)
        self.driver = Driver(
            study,
            ledger,
            make_sampler(study, num_known=len(known)),
            plans_of,
            max_failures=options.max_failures,
            predict=forecast.predict if forecast else lambda _: None,
            proposals=forecast.proposals if forecast else (),
            growth=Growth(study, runs) if study.warm_growth is not None else None,
            listeners=[self._log, self._display, self._keep],
        )

    def log_loads(self, loads: Loads) -> None:
        """On the page of the study, for nodes serve all of its configurations."""
        log_loads(self._log.run, loads)

    def _keep(self, _: Trial) -> None:
        """Have what the ledger says in the storage too, from where another machine goes on."""
        if self._storage is None or self._lease is None or self._is_taken_over:
            return
        try:
            if self._lease.is_held():
                self._storage.keep_study(self._ledger.dir)
            else:  # this machine was cut off for longer than others wait
                self._is_taken_over = True
                self._ledger.dir.stop_file.touch()
        except StorageError as error:  # the next change brings this one too
            logger.warning("%s. The search goes on", error)

    @contextmanager
    def logged(self) -> Iterator[None]:
        """The study's MLflow run ends as the block does."""
        try:
            yield
        except BaseException as error:
            self._log.end("KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED", None)
            raise
        self._log.end("FINISHED", self._report)

    def carry_out(self) -> None:
        """Every configuration, then the finalists.

        Raises RunStoppedError if it was interrupted, RememeError if too many failed.
        """
        study, stop = self._study, threading.Event()
        with stop_signals(stop), self._display:
            watch = threading.Thread(target=self._watch, args=(stop,), daemon=True)
            watch.start()
            run_trials(
                self.driver.ask,
                self._runner,
                self._tell,
                state_dir=self._ledger.dir.tune_dir,
                max_concurrent=study.max_concurrent,
                early_stop=study.early_stop,
                first_percent=round(100 * study.ladder.shares[0]),
                is_here=self._storage is not None,
            )
            self._raise_if_over(stop)
            # Only now is it known who is best. One after the other, as each fills the cluster with sampling.
            for trial in self.driver.finalists():
                self.driver.update(self._runner.finish(trial))
                self._raise_if_over(stop)

    def _tell(self, trial: Trial) -> None:
        # Tune asks where it is when it ends.
        stand_somewhere(self._runs.path)
        self.driver.tell(trial)

    def _watch(self, stop: threading.Event) -> None:
        # A signal reaches this process only; the file reaches those on other nodes.
        stop.wait()
        self._ledger.dir.stop_file.touch()

    def _raise_if_over(self, stop: threading.Event) -> None:
        if self._is_taken_over:
            raise TakenOverError(f"another driver has taken over study {self._study.name}; this one ends")
        trials = list(self.driver.trials.values())
        problem = _why_over(trials, stopped=stop.is_set(), max_failures=self._options.max_failures)
        if problem is not None:
            raise problem

    def conclude(self) -> Path:
        """Table, CSV and report."""
        stand_somewhere(self._runs.path)
        # Brings matplotlib, which nothing before the end needs.
        from orchestrator.search.report.page import write_report

        trials = list(self.driver.trials.values())
        print_study(self._study, trials)
        print(f"ended because {self.driver.ended_by or 'all is done'}")
        file = self._ledger.dir.table_file
        write_csv(file, self._study, trials)
        self._report = write_report(self._runs.path, self._study.name, None)
        if self._storage is not None:
            self._storage.keep_study(self._ledger.dir)
            self._storage.keep_files([file])
        # So that whoever opens the address below finds all of it there.
        self._tracker.flush()
        print(f"kept in      {file}")
        if self._storage is not None:
            print(f"             {self._storage.place_of(self._ledger.dir.path)}")
        print(f"report       {self._report}")
        print(f"MLflow       {run_url(self._tracker, self._log.run)}")
        return self._report


def _why_over(trials: Sequence[Trial], *, stopped: bool, max_failures: int) -> RememeError | None:
    """What ends a search before its budget does; None if nothing."""
    failed = [trial for trial in trials if trial.state == "failed"]
    # First, for too many failures interrupt the others too.
    if len(failed) > max_failures:
        return RememeError(
            f"{len(failed)} of {len(trials)} configurations failed, more than --max-failures "
            f"{max_failures} allows; raise it to go on without them. The last: {failed[-1].error}"
        )
    if stopped:
        done = sum(trial.state in {"finished", "stopped"} for trial in trials)
        return RunStoppedError(
            f"stopped with {done} configurations done; checkpoints are written, run the same command again to continue"
        )
    return None

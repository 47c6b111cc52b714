"""`rememe search`: carry out a study, each network trained once; the same command again goes on where it stopped."""

import csv
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orchestrator.execution.cluster import connect
from orchestrator.execution.supervisor import stop_signals
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.places import RunsDir
from orchestrator.runs.description import prepare_data_of, prepare_reference_of
from orchestrator.search.running.display import StudyView, print_study
from orchestrator.search.running.driver import Driver
from orchestrator.search.running.forecast import Planned, plan_from_study
from orchestrator.search.running.growth import Growth
from orchestrator.search.running.log import StudyTracking
from orchestrator.search.running.runner import TrialRunner
from orchestrator.search.running.tune import run_trials
from orchestrator.search.space.points import shown
from orchestrator.search.study.configurations import Configurations, make_sampler
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.plans import Plans, images_by_key, make_plans
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial, metric_name, ranked
from orchestrator.store.experts import ExpertStore
from orchestrator.tracking.tracker import Tracker, run_url
from workloads.errors import ConfigError, RememeError
from workloads.evaluation.extractors import check_extractor

NUM_CHECKED = 200
"""Configurations looked at for one that the budget admits."""

EXACT = 17
"""Significant digits that keep every bit of a number."""

NUM_PLANNED = 3
"""Configurations the planner proposes, unless told otherwise."""


@dataclass(frozen=True)
class SearchOptions:
    """What a call says besides the study."""

    address: str | None = None
    store_uri: str | None = None
    max_failures: int = 0
    plan_from: str | None = None
    num_planned: int = NUM_PLANNED


def run_study(study: Study, runs_dir: Path, options: SearchOptions) -> list[Trial]:
    """All configurations of the study, in order. Raises ConfigError before anything starts if it cannot be carried out.

    A configuration that fails is reported and the study goes on, until more than max_failures have.
    """
    runs = RunsDir(runs_dir)
    ledger = Ledger(runs, study.name)
    configurations = Configurations(study)
    configurations.check()
    identity = study.identity(configurations.first()[1])
    ledger.require_same(identity)
    plans = make_plans(study, lambda config: prepare_data_of(config, runs).spec(config.data))
    planned = _prepare(configurations, runs, plans, options)
    with ledger.locked():
        ledger.begin(identity)
        with connect(options.address, plans(configurations.first()[0], 0)[-1].jobs), Tracker(runs.path) as tracker:
            search = _Search(study, runs, ledger, plans, planned, options, tracker)
            with search.tracked() as note:
                search.carry_out()
                note(search.conclude())
    return list(search.driver.trials.values())


def _prepare(configurations: Configurations, runs: RunsDir, plans: Plans, options: SearchOptions) -> Planned | None:
    """Everything that can be found wrong before Ray starts, and the earlier study's plan if one is named."""
    study = configurations.study
    config = configurations.seeded(configurations.first()[0], 0)[0]
    check_extractor(config.evaluation)
    prepare_reference_of(config, runs)
    if study.ladder.held_out is not None and not config.data.held_out:
        raise ConfigError("ladder.held_out measures on images kept out of training; set base.data.held_out, e.g. 500")
    limit = study.budget.images_trained
    if limit is not None:
        cheapest = min(
            sum(images_by_key(plans(values, 0)).values()) for values, _ in islice(configurations, NUM_CHECKED)
        )
        if cheapest > limit:
            raise ConfigError(
                f"budget.images_trained is {limit}, but the cheapest configuration trains on {cheapest} images; "
                "raise the budget or lower training.images"
            )
    if options.plan_from is None:
        return None
    return plan_from_study(study, options.plan_from, runs, num_best=options.num_planned)


class _Search:
    def __init__(
        self,
        study: Study,
        runs: RunsDir,
        ledger: Ledger,
        plans: Plans,
        planned: Planned | None,
        options: SearchOptions,
        tracker: Tracker,
    ) -> None:
        self._study, self._runs, self._ledger, self._options, self._tracker = study, runs, ledger, options, tracker
        known = ledger.trials()
        store = ExpertStore(runs.store, options.store_uri)
        self._tracking = StudyTracking(study, tracker, runs, store, plans, known)
        self._view = StudyView(study, ledger.dir, known, Configurations(study).count())
        self._runner = TrialRunner(study, runs, options.store_uri)
        self.driver = Driver(
            study,
            ledger,
            make_sampler(study, num_known=len(known)),
            plans,
            max_failures=options.max_failures,
            predict=planned.predict if planned else lambda _: None,
            proposals=planned.proposals if planned else (),
            growth=Growth(study, runs) if study.warm_growth is not None else None,
            listeners=[self._tracking, self._view],
        )

    @contextmanager
    def tracked(self) -> Iterator[Callable[[Path | None], None]]:
        """The study's MLflow run ends as the block does."""
        report: Path | None = None

        def note(written: Path | None) -> None:
            nonlocal report
            report = written

        try:
            yield note
        except BaseException as error:
            self._tracking.end("KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED", None)
            raise
        self._tracking.end("FINISHED", report)

    def carry_out(self) -> None:
        """Every configuration, then the finalists.

        Raises RunStoppedError if it was interrupted, RememeError if too many failed.
        """
        study, stop = self._study, threading.Event()
        with stop_signals(stop), self._view:
            watch = threading.Thread(target=self._watch, args=(stop,), daemon=True)
            watch.start()
            run_trials(
                self.driver.ask,
                self._runner,
                self.driver.tell,
                state_dir=self._ledger.dir.tune_dir,
                max_concurrent=study.max_concurrent,
                early_stop=study.early_stop,
                first_percent=round(100 * (*study.ladder.brief, 1.0)[0]),
            )
            self._raise_if_stopped(stop)
            for trial in self.driver.finalists():
                self.driver.update(self._runner.finish(trial))
                self._raise_if_stopped(stop)

    def _watch(self, stop: threading.Event) -> None:
        stop.wait()
        self._ledger.dir.stop_file.touch()

    def _raise_if_stopped(self, stop: threading.Event) -> None:
        trials = self.driver.trials.values()
        failed = [trial for trial in trials if trial.state == "failed"]
        if len(failed) > self._options.max_failures:
            raise RememeError(
                f"{len(failed)} of {len(trials)} configurations failed, more than --max-failures "
                f"{self._options.max_failures} allows; raise it to go on without them. The last: {failed[-1].error}"
            )
        if stop.is_set():
            done = sum(trial.state in {"finished", "stopped"} for trial in trials)
            raise RunStoppedError(
                f"stopped with {done} configurations done; checkpoints are written, "
                "run the same command again to continue"
            )

    def conclude(self) -> Path:
        """Table, CSV and report."""
        from orchestrator.search.report.page import write_report

        trials = list(self.driver.trials.values())
        print_study(self._study, trials)
        print(f"ended because {self.driver.ended_by or 'all is done'}")
        file = self._ledger.dir.table_file
        write_csv(file, self._study, trials)
        report = write_report(self._runs.path, self._study.name, None)
        self._tracker.flush()
        print(f"kept in      {file}")
        print(f"report       {report}")
        print(f"MLflow       {run_url(self._tracker, self._tracking.run)}")
        return report


def write_csv(file: Path, study: Study, trials: Sequence[Trial]) -> None:
    """One line per configuration, best first, failed ones last."""
    rungs = [name for name in study.ladder.rungs if any(trial.rung(name) for trial in trials)]
    best = ranked(trials, study.ladder.rungs)
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        scores = [part for name in rungs for part in (name, f"{name}_stderr")]
        writer.writerow(["number", "state", "run", *scores, "score_name", "protocol_hash", *study.space, "error"])
        for trial in [*best, *(trial for trial in trials if trial not in best)]:
            found = [trial.rung(name) for name in rungs]
            cells = [cell for rung in found for cell in ((rung.value, rung.stderr) if rung else ("", ""))]
            last = next((rung for rung in reversed(found) if rung), None)
            named = [metric_name(last), last.protocol_hash] if last else ["", ""]
            varied = [shown(trial.values, path, digits=EXACT) for path in study.space]
            writer.writerow([trial.number, trial.state, " ".join(trial.runs), *cells, *named, *varied, trial.error])

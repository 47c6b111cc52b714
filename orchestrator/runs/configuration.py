"""One configuration from description to score: plan, train what is missing, gather, sample, score, track."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.execution.cluster import connect
from orchestrator.execution.load import watched_loads
from orchestrator.execution.metrics import ClusterMetrics
from orchestrator.execution.nodes import refuse_unfit_nodes
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.jobs import Plan, PlannedJob, make_plan
from orchestrator.runs.data import check_network, note_warmup, prepare_data_of, prepare_reference_of
from orchestrator.runs.status import StatusFile, own_job_id
from orchestrator.runs.surroundings import open_for_results, shown, stand_somewhere
from orchestrator.runs.work import Work
from orchestrator.store.experts import ExpertStore
from orchestrator.store.storage import Storage
from orchestrator.terminal.experts import ExpertsDisplay
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.tables import print_result
from orchestrator.tracking.configuration import (
    ExpertsLog,
    LoadLog,
    log_model,
    log_score,
    log_sizes,
    open_configuration,
)
from orchestrator.tracking.names import COMPARISON_TAG
from orchestrator.tracking.tracker import TrackedRun, Tracker, run_url
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.evaluation import Metric
from workloads.config.load import apply_override, listed, validate
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.evaluation.protocol import Score
from workloads.evaluation.score import TABLE_METRICS
from workloads.pipeline import Scored, check_comparable, check_score
from workloads.places import RunDir, results_of
from workloads.training.jobs import check_memory
from workloads.training.result import JobResult


@dataclass(frozen=True)
class Outcome:
    """A configuration that is trained and, unless that was not asked for, scored."""

    plan: Plan
    run: RunDir
    results: Sequence[JobResult]
    score: Score | None


def train_configuration(
    config: RunConfig,
    runs_dir: Path,
    *,
    address: str | None,
    evaluate: bool,
    comparison: str | None = None,
    store: str | None = None,
    storage: str | None = None,
) -> Outcome:
    """Train what is missing, gather the ensemble and, unless told not to, score it.

    Within a comparison (its name), its MLflow run is found under that name, and further scores are measured. store is
    the URI that finished experts are shared through; storage one that takes the place of a directory all nodes see.

    Raises ExpertsFailedError when an expert failed for good, after the others have finished, and RunStoppedError
    when it was interrupted and checkpoints were written.
    """
    runs = open_for_results(runs_dir)
    if own_job_id() is not None and not runs_dir.is_absolute() and storage is None:
        print_note(
            f"results go to {runs.path}, in Ray's temporary copy of the working directory; "
            "give --runs-dir an absolute path to keep them"
        )
    # Before anything is trained: what a score needs and is not there would otherwise be missed hours later.
    if evaluate:
        check_score(config)
    kept = open_storage(config, store, storage)
    experts = ExpertStore(runs.store, store, kept)
    experts.check_remote()
    check_network(config)
    note_warmup(config)
    dataset = prepare_data_of(config, runs)
    reference = prepare_reference_of(config, runs) if evaluate else None
    if reference is not None:
        check_comparable(dataset, reference)
    plan = make_plan(config, dataset.spec(config.data))
    if address is None:
        for job in plan.jobs:
            check_memory([job.job], on_gpu=job.resources.num_gpus > 0)
    work = Work(plan, runs, experts, runs.run(config.name, plan.fingerprint), kept)
    with _open(work, address, plan.jobs) as session:
        refuse_unfit_nodes(experts.site)
        # First: `rememe store gc` keeps only what some plan names.
        work.write_description()
        results = session.train(dataset)
        ensemble = work.gather(dataset)
        session.log_training(results, ensemble, dataset)
        scored = None
        if reference is not None:
            metrics = TABLE_METRICS if comparison is not None else ()
            scored = session.score(ensemble, config.evaluation, reference, metrics)
        else:
            work.ensemble_at_nodes(ensemble, shown=True)
        if comparison is not None:
            session.tracked.set_tags({COMPARISON_TAG: comparison})
        session.report(results, scored, runs_dir)
        return Outcome(plan, work.run, results, scored.score if scored else None)


def open_storage(config: RunConfig, store: str | None, uri: str | None) -> Storage | None:
    """Where the run is kept, if a URI is given. ConfigError if it is none, or a store is named beside it."""
    if uri is None:
        return None
    if store is not None:
        raise ConfigError(
            f"--store {store} and --storage {uri} are both given; a storage has a store: leave --store out"
        )
    return Storage.at(uri, config.execution)


def evaluate_run(
    run: Path,
    runs_dir: Path,
    *,
    protocol: str | None,
    overrides: Sequence[str] | str,
    address: str | None,
    storage: str | None = None,
) -> Score:
    """Score a trained ensemble under its own or another protocol, and log the score to its MLflow run.

    storage: the URI through which nodes get the ensemble where they do not see its directory.
    """
    runs = open_for_results(runs_dir)
    ensemble = Ensemble.load(run)
    config = _with_protocol(ensemble.config, protocol, overrides)
    check_score(config)
    reference = prepare_reference_of(config, runs)
    if config.reference is None and reference.fingerprint != ensemble.data.fingerprint:
        raise ConfigError(
            f"{run} was trained on other data than {config.data.kind} gives now; set reference in its config"
        )
    plan = make_plan(ensemble.config, ensemble.data)
    kept = open_storage(config, None, storage)
    work = Work(plan, runs, ExpertStore(runs.store), results_of(ensemble.path), kept)
    with _open(work, address) as session:
        scored = session.score(ensemble, config.evaluation, reference)
        session.report([work.store.completed(job.key) for job in plan.jobs], scored, runs_dir)
        return scored.score


def _with_protocol(config: RunConfig, name: str | None, overrides: Sequence[str] | str) -> RunConfig:
    raw: dict[str, Any] = config.evaluation.model_dump(mode="json") if name is None else {"name": name}
    for override in listed(overrides):
        raw = apply_override(raw, override)
    protocol = validate(ProtocolConfig, raw)
    # The whole run again, for steps and guidance must go with its diffusion and its data.
    return validate(RunConfig, config.model_dump(mode="json") | {"evaluation": protocol.model_dump(mode="json")})


@contextmanager
def _open(work: Work, address: str | None, jobs: Sequence[PlannedJob] = ()) -> Iterator["_Session"]:
    """A connected cluster, a status for others to see, of these jobs, and a running MLflow run; all end as the block
    does.
    """
    started_s = time.perf_counter()
    kind = work.plan.config.strategy.kind
    with (
        connect(address, work.plan.jobs),
        StatusFile(work.run, kind, jobs, work.storage) as status,
        Tracker(work.runs.path) as tracker,
    ):
        tracked = open_configuration(tracker, work.plan, work.run.path.name)
        try:
            yield _Session(work, status, tracker, tracked, started_s, is_private=address is None)
        except BaseException as error:
            tracked.finish("KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED")
            raise
        tracked.finish("FINISHED")


@dataclass(frozen=True)
class _Session:
    """A configuration that is worked on and tracked."""

    work: Work
    status: StatusFile
    tracker: Tracker
    tracked: TrackedRun
    started_s: float
    is_private: bool
    """Whether the cluster is this machine."""

    def train(self, dataset: PreparedDataset) -> list[JobResult]:
        """Results in the order of the plan."""
        plan = self.work.plan
        log = ExpertsLog(plan, self.tracker, self.tracked, self.work.runs)
        self.status.doing("training")
        metrics = ClusterMetrics(self.work.run.path.name, plan.jobs)
        loads = LoadLog(self.tracker, self.tracked)
        with (
            ExpertsDisplay(plan.jobs) as display,
            watched_loads(plan.config.execution.node_metrics_every_s, loads),
        ):
            outcome = self.work.train(dataset, [display, log, self.status, metrics])
        # Before a failure is raised: what is finished is logged all the same.
        for key, result in outcome.completed.items():
            log.finish(key, result)
        log.end()
        loads.end()
        stand_somewhere(self.work.runs.path)
        return self.work.require_complete(outcome)

    def log_training(self, results: Sequence[JobResult], ensemble: Ensemble, dataset: PreparedDataset) -> None:
        """Figures and sizes of the whole configuration, and what it is as a model."""
        for file in self.work.figures(results, ensemble, dataset, self.status.doing):
            self.tracked.log_artifact(file, "figures")
        log_sizes(self.tracked, self.work.plan, results)
        log_model(self.tracked, ensemble)

    def score(
        self,
        ensemble: Ensemble,
        protocol: ProtocolConfig,
        reference: PreparedDataset,
        default_metrics: tuple[Metric, ...] = (),
    ) -> Scored:
        """Sample and measure; the score is logged with its samples."""
        scored = self.work.score(
            ensemble,
            protocol,
            reference,
            default_metrics=default_metrics,
            is_private=self.is_private,
            listener=self.status.doing,
        )
        log_score(self.tracked, scored.score, scored.protocol, scored.grid, is_own=scored.is_own)
        return scored

    def report(self, results: Sequence[JobResult | None], scored: Scored | None, runs_dir: Path) -> None:
        """Tell the user what came out and where it is."""
        # The address below is known once MLflow has the run.
        self.tracker.flush()
        storage = self.work.storage
        print_result(
            self.work.plan,
            scored.score if scored else None,
            grid=shown(scored.grid) if scored else None,
            run_dir=shown(self.work.run.path),
            runs_dir=runs_dir,
            url=run_url(self.tracker, self.tracked),
            losses=[result.final_loss if result else float("nan") for result in results],
            elapsed_s=time.perf_counter() - self.started_s,
            kept_in=None if storage is None else storage.place_of(self.work.run.path),
        )

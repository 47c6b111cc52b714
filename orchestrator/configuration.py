"""One configuration from description to score: plan, train what is missing, gather, sample, score, track."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster import connect
from orchestrator.describe import flatten, prepare_data_of, prepare_reference_of, to_yaml
from orchestrator.errors import ExpertsFailedError, RunStoppedError
from orchestrator.experts import Listener, train_experts
from orchestrator.figures import training_figures
from orchestrator.generation import generate_samples
from orchestrator.joint import train_joint
from orchestrator.layout import RunsDir
from orchestrator.plan import Plan, plan
from orchestrator.store import ExpertStore
from orchestrator.tracking import COMPARISON_TAG, TrackedRun, Tracker, run_path
from orchestrator.view import LiveView, print_note, print_result, progress
from workloads.analysis.grid import sample_grid
from workloads.config import ProtocolConfig, RemixJob, RunConfig
from workloads.config.load import apply_override, validate
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import ConfigError
from workloads.evaluation.extractors import check_extractor
from workloads.evaluation.protocol import samples_key
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import Score, evaluate_samples
from workloads.files import write_text
from workloads.training.job import JobResult
from workloads.training.records import TrainingRecord, read_records

GRID_COLUMNS = 10
GRID_ROWS = 10
FIGURE_DPI = 150


@dataclass(frozen=True)
class Outcome:
    """A configuration that is trained and, unless that was not asked for, scored."""

    planned: Plan
    run_dir: Path
    results: Sequence[JobResult]
    score: Score | None


def train_configuration(
    config: RunConfig,
    runs_dir: Path,
    *,
    address: str | None,
    evaluate: bool,
    comparison: str | None = None,
) -> Outcome:
    """Train what is missing, gather the ensemble and, unless told not to, score it.

    Within a comparison (its name), its MLflow run is found under that name, and further scores are measured.

    Raises ExpertsFailedError when an expert failed for good, after the others have finished, and RunStoppedError
    when it was interrupted and checkpoints were written.
    """
    runs = RunsDir(runs_dir)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not runs_dir.is_absolute():
        print_note(
            f"results go to {runs.path}, in Ray's temporary copy of the working directory; "
            "give --runs-dir an absolute path to keep them"
        )
    if evaluate:
        check_extractor(config.evaluation)
    dataset = prepare_data_of(config, runs)
    reference = prepare_reference_of(config, runs) if evaluate else None
    planned = plan(config, dataset.spec(config.data))
    with _open(planned, runs, runs.run(config.name, planned.fingerprint), address) as work:
        write_text(work.run_dir / "config.yaml", to_yaml(config))
        write_text(work.run_dir / "plan.json", json.dumps(planned.to_json(), indent=2))
        results = work.train(dataset)
        ensemble = work.gather(dataset)
        work.log_training(results, ensemble, dataset)
        others = comparison is not None
        scored = None
        if reference is not None:
            scored = work.score(ensemble, config.evaluation, reference, with_others=others)
        if comparison is not None:
            work.tracked.set_tags({COMPARISON_TAG: comparison})
        work.report(results, scored, runs_dir)
        return Outcome(planned, work.run_dir, results, scored.score if scored else None)


def evaluate_run(
    run: Path, runs_dir: Path, *, protocol: str | None, overrides: Sequence[str], address: str | None
) -> None:
    """Score a trained ensemble under its own or another protocol, and log the score to its MLflow run."""
    runs = RunsDir(runs_dir)
    ensemble = Ensemble.load(run)
    config = _with_protocol(ensemble.config, protocol, overrides)
    check_extractor(config.evaluation)
    reference = prepare_reference_of(config, runs)
    if config.reference is None and reference.fingerprint != ensemble.data.fingerprint:
        raise ConfigError(
            f"{run} was trained on other data than {config.data.kind} gives now; set reference in its config"
        )
    planned = plan(ensemble.config, ensemble.data)
    store = ExpertStore(runs.store)
    with _open(planned, runs, ensemble.path.parent, address) as work:
        scored = work.score(ensemble, config.evaluation, reference)
        work.report([store.completed(job.key) for job in planned.jobs], scored, runs_dir)


def _with_protocol(config: RunConfig, name: str | None, overrides: Sequence[str]) -> RunConfig:
    raw: dict[str, Any] = config.evaluation.model_dump(mode="json") if name is None else {"name": name}
    for override in overrides:
        raw = apply_override(raw, override)
    protocol = validate(ProtocolConfig, raw)
    return validate(RunConfig, config.model_dump(mode="json") | {"evaluation": protocol.model_dump(mode="json")})


@contextmanager
def _open(planned: Plan, runs: RunsDir, run_dir: Path, address: str | None) -> Iterator["_Work"]:
    """A connected cluster and a running MLflow run; the run ends as the block does."""
    started_s = time.perf_counter()
    with connect(address, planned.jobs), Tracker(runs.path) as tracker:
        config = planned.config
        tracked = tracker.configuration(run_dir.name, planned.fingerprint, flatten(config), to_yaml(config))
        try:
            yield _Work(planned, runs, run_dir, tracker, tracked, started_s)
        except BaseException as error:
            tracked.finish("KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED")
            raise
        tracked.finish("FINISHED")


@dataclass(frozen=True)
class _Scored:
    score: Score
    grid: Path


@dataclass(frozen=True)
class _Work:
    """One configuration while it is worked on."""

    planned: Plan
    runs: RunsDir
    run_dir: Path
    tracker: Tracker
    tracked: TrackedRun
    started_s: float

    def train(self, dataset: PreparedDataset) -> list[JobResult]:
        """Results in the order of the plan."""
        planned, store = self.planned, ExpertStore(self.runs.store)
        track = _TrackExperts(planned, self.tracker, self.tracked)
        with LiveView(planned.jobs) as view:
            listeners: list[Listener] = [view, track]
            execution = planned.config.execution
            if isinstance(planned.jobs[0].job, RemixJob):
                outcome = train_joint(planned.jobs[0], dataset.path, store, execution, listeners)
            else:
                outcome = train_experts(planned.jobs, dataset.path, store, execution, listeners)
        for key, result in outcome.completed.items():
            track.finish(key, result, self._records(key))
        if outcome.stopped:
            raise RunStoppedError(
                f"stopped with {len(outcome.completed)} of {len(planned.jobs)} experts done; checkpoints are written, "
                "run the same command again to continue"
            )
        if outcome.failed:
            raise ExpertsFailedError(outcome.failed)
        return [outcome.completed[job.key] for job in planned.jobs]

    def gather(self, dataset: PreparedDataset) -> Ensemble:
        """The experts in one directory."""
        folders = [self.runs.store / job.key for job in self.planned.jobs]
        return write_ensemble(self.run_dir / "ensemble", self.planned.config, dataset, folders)

    def log_training(self, results: Sequence[JobResult], ensemble: Ensemble, dataset: PreparedDataset) -> None:
        """Figures and sizes of the whole configuration."""
        jobs = self.planned.jobs
        with progress("measuring", "experts") as advance:
            figures = training_figures(self.planned, self.runs.store, results, ensemble, dataset, advance)
        folder = self.run_dir / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=FIGURE_DPI)
            self.tracked.log_artifact(folder / f"{name}.png", "figures")
        self.tracked.log_metrics(
            {
                "num_parameters": sum(job.num_parameters for job in jobs),
                "num_active_parameters": max(job.num_active_parameters for job in jobs),
                "macs": max(job.macs for job in jobs),
                "train_s": sum(result.train_s for result in results),
            }
        )

    def score(
        self, ensemble: Ensemble, protocol: ProtocolConfig, reference: PreparedDataset, *, with_others: bool = False
    ) -> _Scored:
        """Sample on the connected cluster, measure, keep and log the score with its protocol and a grid."""
        samples = SampleStore(self.run_dir / "samples" / samples_key(protocol, ensemble.fingerprint))
        resources = ensemble.config.execution.resources
        with progress("sampling", "images") as advance:
            generate_samples(ensemble, protocol, samples, resources=resources, on_progress=advance)
        with progress("scoring", "images") as advance:
            score = evaluate_samples(
                samples,
                reference,
                protocol,
                cache_dir=self.runs.cache,
                device=driver_device(),
                on_progress=advance,
                with_others=with_others,
            )
        file = self.run_dir / "scores.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        write_text(file, json.dumps(kept | {score.protocol_hash: asdict(score)}, indent=2))
        short_hash, is_own = score.protocol_hash[:8], protocol == ensemble.config.evaluation
        grid = self.run_dir / ("grid.png" if is_own else f"grid-{protocol.name}-{short_hash}.png")
        _save_grid(samples, protocol, grid)
        # Scores under different protocols never share a column.
        suffix = "" if is_own else f"/{protocol.name}-{short_hash}"
        values = {score.name: score.value, **score.others}
        self.tracked.log_metrics({f"{name}{suffix}": value for name, value in values.items()})
        self.tracked.log_artifact(grid)
        self.tracked.log_text(json.dumps(asdict(score), indent=2), f"score-{protocol.name}-{short_hash}.json")
        if is_own:
            note = f"**{score.name} {score.value:.4g}** under protocol `{protocol.name}`, {score.num_samples} samples"
            self.tracked.set_tags(
                {
                    "rememe.protocol": protocol.name,
                    "rememe.protocol_hash": score.protocol_hash,
                    "mlflow.note.content": f"{note}. Samples: artifact `grid.png`.",
                }
            )
        return _Scored(score, grid)

    def report(self, results: Sequence[JobResult | None], scored: _Scored | None, runs_dir: Path) -> None:
        """Tell the user what came out and where it is."""
        self.tracker.flush()
        path = run_path(self.tracker, self.tracked)
        if path is None:
            url = f"{self.tracker.uri} does not answer; the results are spooled and written by the next run"
        else:
            url = f"{self.tracker.uri if self.tracker.uri.startswith('http') else 'http://127.0.0.1:5000'}{path}"
        print_result(
            self.planned,
            scored.score if scored else None,
            grid=_shown(scored.grid) if scored else None,
            run_dir=_shown(self.run_dir),
            runs_dir=runs_dir,
            url=url,
            losses=[result.final_loss if result else float("nan") for result in results],
            elapsed_s=time.perf_counter() - self.started_s,
        )

    def _records(self, key: str) -> list[TrainingRecord]:
        return read_records(self.runs.store / key / "records.jsonl")


class _TrackExperts:
    """Hands what happens to experts on to their MLflow runs."""

    def __init__(self, planned: Plan, tracker: Tracker, parent: TrackedRun) -> None:
        self._runs = {
            job.key: tracker.expert(parent, f"{job.name} {job.interval}", job.key, flatten(job.job))
            for job in planned.jobs
        }

    def on_state(self, key: str, state: str, detail: str = "") -> None:
        if state in {"failed", "stopped"}:
            self._runs[key].finish("FAILED" if state == "failed" else "KILLED")
            self._runs[key].set_tags({"rememe.state": f"{state} {detail}".strip()})

    def on_records(self, key: str, records: Sequence[TrainingRecord]) -> None:
        self._runs[key].records(records)

    def finish(self, key: str, result: JobResult, records: Sequence[TrainingRecord]) -> None:
        """What is known only in the end; all records again, for an expert that was trained for another run."""
        run = self._runs[key]
        run.records(records)
        for timestep, loss in result.loss_by_timestep:
            run.log_metrics({"loss_by_timestep": loss}, step=timestep)
        run.log_metrics({"final_loss": result.final_loss, "train_s": result.train_s})
        run.finish("FINISHED")


def _save_grid(samples: SampleStore, protocol: ProtocolConfig, file: Path) -> None:
    images = samples.images(protocol)
    shown = images.__getitems__(list(range(min(len(images), GRID_COLUMNS * GRID_ROWS))))
    sample_grid(np.stack(shown), num_columns=GRID_COLUMNS).save(file)


def driver_device() -> str:
    """Where the driver measures."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shown(path: Path) -> Path:
    """Relative where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

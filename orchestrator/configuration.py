"""One configuration from description to score: plan, train what is missing, gather, sample, score, track."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster import connect
from orchestrator.describe import flatten, prepare_data_of, to_yaml
from orchestrator.errors import ExpertsFailedError, RunStoppedError
from orchestrator.experts import train_experts
from orchestrator.generation import generate_samples
from orchestrator.layout import RunsDir
from orchestrator.plan import Plan, plan
from orchestrator.store import ExpertStore
from orchestrator.tracking import TrackedRun, Tracker, run_path
from orchestrator.view import LiveView, print_result, progress
from workloads.analysis.figures import loss_by_timestep_figure, training_loss_figure
from workloads.analysis.grid import sample_grid
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.load import apply_override, validate
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import ConfigError
from workloads.evaluation.extractors import check_extractor
from workloads.evaluation.protocol import samples_key
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import Score, evaluate_samples
from workloads.files import write_text
from workloads.training.expert import ExpertResult
from workloads.training.records import TrainingRecord, read_records

GRID_COLUMNS = 10
GRID_ROWS = 10
FIGURE_DPI = 150


def train_configuration(config: RunConfig, runs_dir: Path, *, address: str | None, evaluate: bool) -> None:
    """Train what is missing, gather the ensemble and, unless told not to, score it.

    Raises ExpertsFailedError when an expert failed for good, after the others have finished, and RunStoppedError
    when it was interrupted and checkpoints were written.
    """
    started_s = time.perf_counter()
    runs = RunsDir(runs_dir)
    if evaluate:
        check_extractor(config.evaluation)
    dataset = prepare_data_of(config, runs)
    planned = plan(config, dataset.spec(config.data))
    run_dir = runs.run(config.name, planned.fingerprint)
    with ExitStack() as stack:
        stack.enter_context(connect(address, planned.jobs))
        write_text(run_dir / "config.yaml", to_yaml(config))
        write_text(run_dir / "plan.json", json.dumps(planned.to_json(), indent=2))
        tracker = stack.enter_context(Tracker(runs.path))
        tracked = tracker.configuration(run_dir.name, planned.fingerprint, flatten(config), to_yaml(config))
        try:
            results = _train(planned, dataset, runs, tracker, tracked)
            ensemble = _gather(planned, dataset, runs, run_dir)
            _log_training(planned, results, runs, run_dir, tracked)
            score = _score(ensemble, config.evaluation, dataset, runs, run_dir, tracked) if evaluate else None
        except BaseException as error:
            tracked.finish("KILLED" if isinstance(error, KeyboardInterrupt | RunStoppedError) else "FAILED")
            raise
        tracked.finish("FINISHED")
        tracker.flush()
        losses = [result.final_loss for result in results]
        _report(planned, score, losses, run_dir, runs_dir, tracker, tracked, time.perf_counter() - started_s)


def evaluate_run(
    run: Path, runs_dir: Path, *, protocol: str | None, overrides: Sequence[str], address: str | None
) -> None:
    """Score a trained ensemble under its own or another protocol, and log the score to its MLflow run."""
    started_s = time.perf_counter()
    runs = RunsDir(runs_dir)
    ensemble = Ensemble.load(run)
    config = _with_protocol(ensemble.config, protocol, overrides)
    check_extractor(config.evaluation)
    dataset = prepare_data_of(config, runs)
    planned = plan(ensemble.config, ensemble.data)
    run_dir = ensemble.path.parent
    with ExitStack() as stack:
        stack.enter_context(connect(address, planned.jobs))
        tracker = stack.enter_context(Tracker(runs.path))
        tracked = tracker.configuration(
            run_dir.name, planned.fingerprint, flatten(ensemble.config), to_yaml(ensemble.config)
        )
        score = _score(ensemble, config.evaluation, dataset, runs, run_dir, tracked)
        tracked.finish("FINISHED")
        tracker.flush()
        store = ExpertStore(runs.store)
        results = [store.completed(job.key) for job in planned.jobs]
        losses = [result.final_loss if result else float("nan") for result in results]
        _report(planned, score, losses, run_dir, runs_dir, tracker, tracked, time.perf_counter() - started_s)


def _with_protocol(config: RunConfig, name: str | None, overrides: Sequence[str]) -> RunConfig:
    raw: dict[str, Any] = config.evaluation.model_dump(mode="json") if name is None else {"name": name}
    for override in overrides:
        raw = apply_override(raw, override)
    protocol = validate(ProtocolConfig, raw)
    return validate(RunConfig, config.model_dump(mode="json") | {"evaluation": protocol.model_dump(mode="json")})


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

    def finish(self, key: str, result: ExpertResult, records: Sequence[TrainingRecord]) -> None:
        """What is known only in the end; all records again, for an expert that was trained for another run."""
        run = self._runs[key]
        run.records(records)
        for timestep, loss in result.loss_by_timestep:
            run.log_metrics({"loss_by_timestep": loss}, step=timestep)
        run.log_metrics({"final_loss": result.final_loss, "train_s": result.train_s})
        run.finish("FINISHED")


def _train(
    planned: Plan, dataset: PreparedDataset, runs: RunsDir, tracker: Tracker, tracked: TrackedRun
) -> list[ExpertResult]:
    """Results in the order of the plan."""
    store = ExpertStore(runs.store)
    track = _TrackExperts(planned, tracker, tracked)
    with LiveView(planned.jobs) as view:
        outcome = train_experts(planned.jobs, dataset.path, store, planned.config.execution, [view, track])
    for key, result in outcome.completed.items():
        track.finish(key, result, read_records(store.path(key) / "records.jsonl"))
    if outcome.stopped:
        raise RunStoppedError(
            f"stopped with {len(outcome.completed)} of {len(planned.jobs)} experts done; checkpoints are written, "
            "run the same command again to continue"
        )
    if outcome.failed:
        raise ExpertsFailedError(outcome.failed)
    return [outcome.completed[job.key] for job in planned.jobs]


def _gather(planned: Plan, dataset: PreparedDataset, runs: RunsDir, run_dir: Path) -> Ensemble:
    folders = [runs.store / job.key for job in planned.jobs]
    return write_ensemble(run_dir / "ensemble", planned.config, dataset, folders)


def _log_training(
    planned: Plan, results: Sequence[ExpertResult], runs: RunsDir, run_dir: Path, tracked: TrackedRun
) -> None:
    intervals = planned.config.intervals
    records = [read_records(runs.store / job.key / "records.jsonl") for job in planned.jobs]
    figures = {
        "training_loss": training_loss_figure(records, intervals),
        "loss_by_timestep": loss_by_timestep_figure(
            [result.loss_by_timestep for result in results],
            intervals,
            [job.job.specialisation for job in planned.jobs],
        ),
    }
    for name, figure in figures.items():
        file = run_dir / "figures" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=FIGURE_DPI)
        tracked.log_artifact(file, "figures")
    tracked.log_metrics(
        {
            "num_parameters": sum(job.num_parameters for job in planned.jobs),
            "num_active_parameters": max(job.num_active_parameters for job in planned.jobs),
            "macs": max(job.macs for job in planned.jobs),
            "train_s": sum(result.train_s for result in results),
        }
    )


def _score(
    ensemble: Ensemble,
    protocol: ProtocolConfig,
    dataset: PreparedDataset,
    runs: RunsDir,
    run_dir: Path,
    tracked: TrackedRun,
) -> Score:
    """Sample on the connected cluster, measure, keep and log the score with its protocol and a grid."""
    if ensemble.data.fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"{run_dir} was trained on other data than {dataset.path} holds; name that data in its config"
        )
    samples = SampleStore(run_dir / "samples" / samples_key(protocol, ensemble.fingerprint))
    resources = ensemble.config.execution.resources
    with progress("sampling", "images") as advance:
        generate_samples(ensemble, protocol, samples, resources=resources, on_progress=advance)
    device = "cuda" if resources.num_gpus > 0 and _driver_has_gpu() else "cpu"
    with progress("scoring", "images") as advance:
        score = evaluate_samples(samples, dataset, protocol, cache_dir=runs.cache, device=device, on_progress=advance)
    grid = run_dir / "grid.png"
    images = samples.images(protocol)
    shown = images.__getitems__(list(range(min(len(images), GRID_COLUMNS * GRID_ROWS))))
    sample_grid(np.stack(shown), num_columns=GRID_COLUMNS).save(grid)
    scores_file = run_dir / "scores.json"
    kept = json.loads(scores_file.read_text()) if scores_file.exists() else {}
    write_text(scores_file, json.dumps(kept | {score.protocol_hash: asdict(score)}, indent=2))
    tracked.log_metrics({score.name: score.value})
    tracked.log_artifact(grid)
    tracked.log_text(json.dumps(asdict(score), indent=2), "protocol.json")
    tracked.set_tags({"rememe.protocol": protocol.name, "rememe.protocol_hash": score.protocol_hash})
    return score


def _driver_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _report(
    planned: Plan,
    score: Score | None,
    losses: Sequence[float],
    run_dir: Path,
    runs_dir: Path,
    tracker: Tracker,
    tracked: TrackedRun,
    elapsed_s: float,
) -> None:
    path = run_path(tracker, tracked)
    if path is None:
        url = f"{tracker.uri} does not answer; the results are spooled and written by the next run"
    else:
        url = f"{tracker.uri if tracker.uri.startswith('http') else 'http://127.0.0.1:5000'}{path}"
    shown = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    print_result(planned, score, run_dir=shown, runs_dir=runs_dir, url=url, losses=losses, elapsed_s=elapsed_s)

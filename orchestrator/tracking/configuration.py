"""What a configuration and its experts log; for single runs and for studies."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator.plan import events
from orchestrator.plan.description import flatten, to_yaml
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import Plan, PlannedJob
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.names import NOTE_TAG, PROTOCOL_TAG, RUN_ID, SCORE_TAG, TRUST_TAG
from orchestrator.tracking.tracker import TrackedRun, Tracker, own_command
from workloads.config import ProtocolConfig
from workloads.ensemble import Ensemble
from workloads.evaluation.protocol import Score
from workloads.places import PICTURE_KINDS, JobDir
from workloads.training.records import TrainingRecord, read_records
from workloads.training.result import JobResult

MAX_SHOWN = 8
"""Of more experts, so many have their pictures side by side, evenly from the clean end to the noisy one."""


def open_configuration(
    tracker: Tracker, plan: Plan, name: str, *, parent: TrackedRun | None = None, more: Mapping[str, object] = {}
) -> TrackedRun:
    """The configuration's run; the same configuration goes on in its run."""
    config = plan.config
    # The strategies name it differently, or only its cuts.
    params = {**flatten(config), **more, "num_experts": len(config.intervals)}
    if parent is not None:
        # The run's own name says it, and MLflow's plots begin with the parameters that differ.
        del params["name"]
    run = tracker.configuration(name, plan.fingerprint, params, to_yaml(config), parent=parent)
    data = plan.jobs[0].job.data
    source = config.data.model_dump(mode="json")
    title = f"{Path(source.get('path', config.data.kind)).name} {data.image_size} x {data.image_size}"
    run.dataset(title, data.fingerprint, source, data.model_dump(mode="json"))
    return run


def open_expert(tracker: Tracker, parent: TrackedRun, job: PlannedJob) -> TrackedRun:
    """The run of an expert, below the configuration that has it first; others get a link."""
    return tracker.expert(parent, job.name, f"{job.name} {job.interval}", job.key, flatten(job.job))


def log_expert(run: TrackedRun, result: JobResult, records: Sequence[TrainingRecord]) -> None:
    """Everything about a finished expert; what is there already is not written again."""
    run.records(records)
    # Not now: of two drivers that share the expert, each writes it down.
    ended_s = records[-1].written_s if records else None
    for timestep, loss in result.loss_by_timestep:
        run.log_metrics({"loss_by_timestep": loss}, step=timestep, measured_s=ended_s)
    run.log_metrics({"final_loss": result.final_loss, "train_s": result.train_s}, measured_s=ended_s)
    run.finish("FINISHED")


def log_pictures(run: TrackedRun, place: JobDir) -> None:
    """What an expert has drawn in the course of its training."""
    for kind in PICTURE_KINDS:
        for images_seen, file in place.pictures(kind).items():
            run.log_image(file, kind, images_seen)


def log_model(tracked: TrackedRun, ensemble: Ensemble) -> None:
    """The ensemble of the run as a model, unless it is larger than execution.tracked_model_gb."""
    folder = ensemble.path
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size_bytes <= ensemble.config.execution.tracked_model_gb * 1e9:
        tracked.log_model(folder.parent.name, ensemble.fingerprint)


def log_loads(tracked: TrackedRun, loads: Mapping[str, Mapping[str, float]]) -> None:
    """How busy nodes are now, values by name by node, where MLflow shows what its own monitor measures."""
    now_s = time.time()
    values = {f"system/{node}/{name}": value for node, load in loads.items() for name, value in load.items()}
    # No two are measured in one second, also when the run goes on another day.
    tracked.log_metrics(values, step=int(now_s), measured_s=now_s)


def log_sizes(tracked: TrackedRun, plan: Plan, results: Sequence[JobResult]) -> None:
    """What the whole configuration takes."""
    tracked.log_metrics(
        {
            "num_parameters": plan.num_parameters,
            "num_active_parameters": plan.num_active_parameters,
            "macs": plan.macs,
            "train_s": sum(result.train_s for result in results),
        }
    )


def log_score(tracked: TrackedRun, score: Score, protocol: ProtocolConfig, grid: Path, *, is_own: bool) -> None:
    """A score, its protocol and its samples. Scores under different protocols never share a column.

    is_own: the protocol is the run description's.
    """
    short_hash = score.protocol_hash[:8]
    suffix = "" if is_own else f"/{protocol.name}-{short_hash}"
    values = {score.name: score.value, **score.others}
    values |= {f"{name}_stderr": error for name, error in score.others_stderr.items()}
    if score.stderr is not None:
        values[f"{score.name}_stderr"] = score.stderr
    tracked.log_metrics({f"{name}{suffix}": value for name, value in values.items()})
    tracked.log_artifact(grid)
    tracked.log_text(json.dumps(asdict(score), indent=2), f"score-{protocol.name}-{short_hash}.json")
    if is_own:
        tracked.set_tags(
            {
                SCORE_TAG: score.name,
                TRUST_TAG: score.warning or "yes",
                PROTOCOL_TAG: protocol.name,
                "rememe.protocol_hash": score.protocol_hash,
                NOTE_TAG: _described(score, protocol, grid),
            }
        )


def _described(score: Score, protocol: ProtocolConfig, grid: Path) -> str:
    """What the page of a configuration begins with, in Markdown."""
    spread = "" if score.stderr is None else f"{score.estimate.spread('±')} (95 %)"
    doubt = f" **Not trustworthy:** {score.warning}." if score.warning else ""
    others = f" Also {', '.join(score.other_words)}." if score.other_words else ""
    return (
        f"**{score.name} {score.value:.4g}{spread}** under protocol `{protocol.name}`, {score.num_samples} samples, "
        f"hash {score.protocol_hash[:8]}.{others}{doubt}\n\n"
        f"![samples](get-artifact?path={grid.name}&run_uuid={RUN_ID})\n\n"
        f"    {own_command()}\n"
    )


class LoadLog:
    """Hands on how busy nodes are, to a run below the configuration's that is opened with the first that is heard."""

    def __init__(self, tracker: Tracker, parent: TrackedRun) -> None:
        self._tracker, self._parent = tracker, parent
        self._run: TrackedRun | None = None

    def __call__(self, loads: Mapping[str, Mapping[str, float]]) -> None:
        if loads:
            self._run = self._run or self._tracker.below(self._parent, "nodes")
            log_loads(self._run, loads)

    def end(self) -> None:
        """Nothing more is heard."""
        if self._run is not None:
            self._run.finish("FINISHED")


class ExpertsLog:
    """Hands what happens to experts on to their MLflow runs. A listener of train_experts."""

    def __init__(self, plan: Plan, tracker: Tracker, parent: TrackedRun, runs: RunsDir) -> None:
        self._places = runs
        self._parent = parent
        self._names = {job.key: job.name for job in plan.jobs}
        self._shown = {job.key for job in plan.jobs[:: -(-len(plan.jobs) // MAX_SHOWN)]}
        self._runs = {job.key: open_expert(tracker, parent, job) for job in plan.jobs}
        self._tracker = tracker
        self._album: TrackedRun | None = None
        """Of pictures; opened with the first."""
        self._pictured: set[Path] = set()

    def __call__(self, event: ExpertEvent) -> None:
        run = self._runs[event.key]
        match event:
            case events.Progressed(records=records):
                run.records(records)
                self._parent.losses(self._names[event.key], records)
                self._log_pictures(event.key)
            case events.Failed(reason=reason):
                run.finish("FAILED")
                run.set_tags({"rememe.state": f"{event.state.value} {reason}"})
            case events.Stopped():
                run.finish("KILLED")
                run.set_tags({"rememe.state": event.state.value})

    def finish(self, key: str, result: JobResult) -> None:
        """What is known only in the end; all records again, for an expert that was trained for another run."""
        self._log_pictures(key)
        records = read_records(self._places.job(key).records)
        log_expert(self._runs[key], result, records)
        self._parent.losses(self._names[key], records)

    def end(self) -> None:
        """All experts have ended."""
        if self._album is not None:
            self._album.finish("FINISHED")

    def _log_pictures(self, key: str) -> None:
        """What the expert has drawn since: on its page and, of some experts, beside those of the others."""
        for kind in PICTURE_KINDS:
            for images_seen, file in self._places.job(key).pictures(kind).items():
                if file in self._pictured:
                    continue
                self._pictured.add(file)
                # One that is trained from before a checkpoint again removes what it had drawn since.
                with suppress(FileNotFoundError):
                    self._runs[key].log_image(file, kind, images_seen)
                    if key in self._shown:
                        self._album = self._album or self._tracker.below(self._parent, "pictures")
                        series = kind if len(self._runs) == 1 else f"{kind}/{self._names[key]}"
                        self._album.log_image(file, series, images_seen)

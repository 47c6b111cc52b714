"""One configuration of a study from plan to score, in a process that holds no resources and knows no tracker."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator.execution.tasks import held_out_curves, latencies_s
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.jobs import PlannedJob, architecture_of, plan
from orchestrator.plan.places import RunsDir, StudyDir
from orchestrator.runs.description import prepare_data_of, prepare_reference_of
from orchestrator.runs.work import Work
from orchestrator.search.inference.statistics import Estimate, over_seeds
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.options import BRIEF, FULL, LOSS, QUICK
from orchestrator.search.study.plans import with_share
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, UsedJob
from orchestrator.store.experts import ExpertStore
from workloads.analysis.curves import LossCurve, ensemble_loss
from workloads.config import AnyModel, ProtocolConfig, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.errors import RememeError
from workloads.files import write_text
from workloads.training.records import TrainingRecord

Report = Callable[[Trial, float | None, float | None], None]

PROGRESS_INTERVAL_S = 2.0


@dataclass(frozen=True)
class TrialRunner:
    """What every configuration of a study has in common; called with one, it carries it out."""

    study: Study
    runs: RunsDir
    store_uri: str | None

    def __call__(self, trial: Trial, report: Report) -> Trial:
        """The configuration with its rungs, or with its error. The same call again does only what is missing."""
        started_s = time.perf_counter()
        running = _Running(self, trial, report)
        try:
            running.climb()
            state, error = "finished", ""
        except RunStoppedError:
            state, error = "interrupted", ""
        except RememeError as problem:
            state, error = "failed", str(problem)
        elapsed_s = trial.elapsed_s + time.perf_counter() - started_s
        return running.trial.model_copy(update={"state": state, "error": error, "elapsed_s": elapsed_s})

    def finish(self, trial: Trial) -> Trial:
        """The full protocol for a finalist."""
        running = _Running(self, trial, lambda *_: None)
        running.train(1.0)
        running.score(FULL)
        return running.trial


@dataclass
class _Running:
    runner: TrialRunner
    trial: Trial
    report: Report
    works: list[Work] = field(default_factory=list)
    """One per seed, of the training share that was last asked for."""

    def climb(self) -> None:
        """Every rung the study has for all configurations."""
        ladder = self.runner.study.ladder
        for share in (*ladder.brief, 1.0):
            self.train(share)
            if ladder.held_out is not None:
                self.report(self.trial, share, self.measure_loss(share))
        self._note_costs()
        if ladder.quick is not None:
            self.score(QUICK)
        if ladder.finalists is None:
            self.score(FULL)

    def train(self, share: float) -> None:
        """Have every network of the configuration (and of each seed) trained with this share of the budget."""
        self.works = [self._work(config, share) for config in self._configs]
        for work in self.works:
            progress = _Progress(self._dir.progress_file(self.trial.number), work, self._mark)
            should_stop = self._dir.stop_file.exists
            outcome = work.train(self._dataset, [progress], should_stop)
            work.require_complete(outcome)
        found = {job.key: job for job in self.trial.jobs}
        for work in self.works:
            for job in work.planned.jobs:
                found.setdefault(job.key, self._used(job, work, brief=share < 1))
        self._update(jobs=tuple(found.values()))

    def measure_loss(self, share: float) -> float:
        """Held-out loss over all timesteps, each by the network that owns it; the mean over seeds."""
        spec = self.runner.study.ladder.held_out
        assert spec is not None
        started_s, losses = time.perf_counter(), []
        for work in self.works:
            intervals = work.planned.config.intervals
            folders = [work.store.path(job.key) for job in work.planned.jobs]
            curves = held_out_curves(work.planned.jobs, folders, self._dataset.path, spec)
            losses.append(ensemble_loss(_per_interval(curves, len(intervals)), intervals))
        name = LOSS if share == 1 else f"{BRIEF}{share:g}"
        estimate = over_seeds([Estimate(loss, None) for loss in losses])
        self._add(Rung(name=name, value=estimate.value, stderr=estimate.stderr, elapsed_s=_since(started_s)))
        return estimate.value

    def score(self, rung: str) -> None:
        """Sample and measure under the quick or the full protocol."""
        started_s, estimates = time.perf_counter(), []
        reference = prepare_reference_of(self.works[0].planned.config, self._runs)
        for work in self.works:
            protocol = self._protocol(work.planned.config, rung)
            ensemble = work.gather(self._dataset)
            scored = work.score(ensemble, protocol, reference, with_stderr=True, on_cluster=True)
            estimates.append(Estimate(scored.score.value, scored.score.stderr))
        estimate, score = over_seeds(estimates), scored.score
        self._add(
            Rung(
                name=rung,
                value=estimate.value,
                stderr=estimate.stderr,
                score_name=score.name,
                protocol_hash=score.protocol_hash,
                num_samples=score.num_samples,
                elapsed_s=_since(started_s),
            )
        )

    @property
    def _runs(self) -> RunsDir:
        return self.runner.runs

    @property
    def _dir(self) -> StudyDir:
        return self._runs.study(self.runner.study.name)

    @cached_property
    def _configs(self) -> list[RunConfig]:
        return Configurations(self.runner.study).seeded(self.trial.described, self.trial.number)

    @cached_property
    def _dataset(self) -> PreparedDataset:
        return prepare_data_of(self._configs[0], self._runs)

    def _work(self, config: RunConfig, share: float) -> Work:
        planned = plan(with_share(config, share), self._dataset.spec(config.data))
        work = Work(
            planned,
            self._runs,
            ExpertStore(self._runs.store, self.runner.store_uri),
            self._runs.run(config.name, planned.fingerprint),
        )
        if share == 1:
            work.describe()
            self._update(runs=tuple(dict.fromkeys((*self.trial.runs, work.run_dir.name))))
        return work

    def _protocol(self, config: RunConfig, rung: str) -> ProtocolConfig:
        return config.evaluation if rung == FULL else self.runner.study.quick_protocol(config)

    def _note_costs(self) -> None:
        planned = self.works[0].planned
        latency_s, jobs = None, self.trial.jobs
        if self.runner.study.measures_latency:
            ensemble = self.works[0].gather(self._dataset)
            each_s = latencies_s(ensemble, planned.jobs[0].resources)
            latency_s = planned.mean_over_timesteps(each_s)
            by_key = {job.key: value for job, value in zip(planned.jobs, each_s, strict=False)}
            jobs = tuple(job.model_copy(update={"latency_s": by_key.get(job.key)}) for job in jobs)
        self._update(
            jobs=jobs,
            num_parameters=sum(job.num_parameters for job in planned.jobs),
            macs=planned.mean_over_timesteps([job.macs for job in planned.jobs]),
            latency_s=latency_s,
        )

    def _used(self, job: PlannedJob, work: Work, *, brief: bool) -> UsedJob:
        mark = work.store.path(job.key) / "first-for"
        return UsedJob(
            key=job.key,
            name=job.name,
            interval=job.interval,
            architecture=architecture_of(job.job.model),
            label=_label(job.job.model, self.runner.study.space),
            images=job.job.training.images,
            num_parameters=job.num_parameters,
            macs=job.macs,
            trained=mark.exists() and mark.read_text() == self._name,
            brief=brief,
        )

    @property
    def _name(self) -> str:
        return f"{self.runner.study.name}/{self.trial.number}"

    def _mark(self, folder: Path) -> None:
        """Leave word for which configuration a job was begun first, whoever ends it."""
        mark = folder / "first-for"
        if not mark.exists():
            write_text(mark, self._name)

    def _add(self, rung: Rung) -> None:
        self._update(rungs=(*(known for known in self.trial.rungs if known.name != rung.name), rung))

    def _update(self, **changes: object) -> None:
        self.trial = self.trial.model_copy(update=changes)


class _Progress:
    """Writes how far training is into a small file that the terminal view reads; marks what is begun."""

    def __init__(self, file: Path, work: Work, mark: Callable[[Path], None]) -> None:
        self._file, self._work, self._mark = file, work, mark
        self._images = dict.fromkeys((job.key for job in work.planned.jobs), 0)
        self._written_s = 0.0

    def on_state(self, key: str, state: str, detail: str = "") -> None:  # noqa: ARG002
        if state == "starting":
            self._mark(self._work.store.path(key))
        if state in {"done", "reused"}:
            self._images[key] = self._work.planned.by_key[key].job.training.images
        self._write(state)

    def on_records(self, key: str, records: Sequence[TrainingRecord]) -> None:
        self._images[key] = records[-1].images_seen
        self._write("training")

    def _write(self, state: str) -> None:
        if time.monotonic() - self._written_s < PROGRESS_INTERVAL_S:
            return
        self._written_s = time.monotonic()
        total = sum(job.job.training.images for job in self._work.planned.jobs)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(f"{state} {sum(self._images.values()) / total:.0%}")


def _label(model: AnyModel, paths: Iterable[str]) -> str:
    """What tells an architecture from others of the study: its varied fields, or its kind."""
    dumped = model.model_dump(mode="json")
    fields = [path.partition("model.")[2].split(".")[0] for path in paths if "model." in path]
    words = [f"{field} {_spaced(dumped[field])}" for field in dict.fromkeys(fields) if field in dumped]
    return ", ".join(words) or str(dumped["kind"])


def _spaced(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _per_interval(curves: Sequence[LossCurve], num_intervals: int) -> list[LossCurve]:
    """A remix has one curve for all of its experts."""
    return list(curves) if len(curves) == num_intervals else [curves[0]] * num_intervals


def _since(started_s: float) -> float:
    return time.perf_counter() - started_s

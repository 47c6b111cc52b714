"""One configuration of a study from plan to score, in a process that holds no resources and knows no tracker."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from orchestrator.execution.tasks import latencies_s
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.events import Checkpointed, ExpertEvent, ExpertState, Progressed
from orchestrator.plan.jobs import make_plan
from orchestrator.plan.places import RunsDir, StudyDir
from orchestrator.runs.data import prepare_data_of, prepare_reference_of
from orchestrator.runs.work import Work
from orchestrator.search.running.remarks import remarks_kept
from orchestrator.search.running.tune import ReportTrial
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.costs import used_job, with_costs
from orchestrator.search.study.marks import is_first, mark_first
from orchestrator.search.study.options import FULL, QUICK, loss_rung
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, UsedJob
from orchestrator.search.study.trial_plans import with_training_share
from orchestrator.store.experts import ExpertStore
from orchestrator.store.storage import Storage
from workloads.analysis.curves import LossCurve, ensemble_loss
from workloads.config import ProtocolConfig, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.errors import RememeError
from workloads.evaluation.estimates import Estimate, over_seeds
from workloads.evaluation.protocol import Score

PROGRESS_INTERVAL_S = 2.0


@dataclass(frozen=True)
class TrialRunner:
    """What every configuration of a study has in common; called with one, it carries it out."""

    study: Study
    runs: RunsDir
    store_uri: str | None = None
    storage: Storage | None = None

    def __call__(self, trial: Trial, report: ReportTrial) -> Trial:
        """The configuration with its rungs, or with its error. The same call again does only what is missing.

        What is warned of meanwhile lies in the study's remarks_file, for nobody sees this process.
        """
        with remarks_kept(self.runs.study(self.study.name).remarks_file(trial.number)):
            return self._carried_out(trial, report)

    def _carried_out(self, trial: Trial, report: ReportTrial) -> Trial:
        started_s = time.perf_counter()
        climb = Climb(self, trial, report)
        try:
            climb.all_rungs()
            state, error = "finished", ""
        except RunStoppedError:
            state, error = "interrupted", ""
        # Other errors are faults of ours: Tune ends the configuration, and its last line is told.
        except RememeError as problem:
            state, error = "failed", str(problem)
        # Over all calls that worked on it.
        elapsed_s = trial.elapsed_s + time.perf_counter() - started_s
        return climb.trial.model_copy(update={"state": state, "error": error, "elapsed_s": elapsed_s})

    def finish(self, trial: Trial) -> Trial:
        """The full protocol for a finalist."""
        climb = Climb(self, trial, lambda *_: None)
        climb.train(1.0)
        climb.score(FULL)
        return climb.trial


@dataclass
class Climb:
    """A configuration on its way up the ladder. It acts; what is kept of it is worked out in study/."""

    runner: TrialRunner
    trial: Trial
    report: ReportTrial
    works: list[Work] = field(default_factory=list)
    """One per seed, of the training share that was last asked for."""

    def all_rungs(self) -> None:
        """Every rung the study has for all configurations."""
        ladder = self.runner.study.ladder
        for share in ladder.shares:
            self.train(share)
            if ladder.held_out is not None:
                # Measured first: one that is stopped here must have the rung it was judged by.
                loss = self.measure_loss(share)
                self.report(self.trial, share, loss)
        self.measure_costs()
        if ladder.quick is not None:
            self.score(QUICK)
        if ladder.finalists is None:
            self.score(FULL)

    def train(self, share: float) -> None:
        """Have every network of the configuration (and of each seed) trained with this share of the budget."""
        self.works = [self._work(config, share) for config in self._configs]
        for work in self.works:
            mark = partial(mark_first, configuration=self._name)
            progress = _ProgressFile(self._dir.progress_file(self.trial.number), work, mark)
            outcome = work.train(self._dataset, [progress], self._dir.stop_file.exists)
            work.require_complete(outcome)
        used = [self._used(work, share) for work in self.works]
        self.trial = self.trial.with_jobs(job for jobs in used for job in jobs)

    def measure_loss(self, share: float) -> float:
        """Held-out loss over all timesteps, each by the network that owns it; the mean over seeds."""
        spec = self.runner.study.ladder.held_out
        assert spec is not None
        started_s, losses = time.perf_counter(), []
        for work in self.works:
            intervals = work.plan.config.intervals
            curves = work.held_out_curves(self._dataset, spec)
            losses.append(ensemble_loss(_per_interval(curves, len(intervals)), intervals))
        # The held-out images and their noise are fixed, so a loss has no error of its own: only seeds differ.
        estimate = over_seeds([Estimate(loss, None) for loss in losses])
        name, elapsed_s = loss_rung(share), _since(started_s)
        self._add(Rung(name=name, value=estimate.value, stderr=estimate.stderr, elapsed_s=elapsed_s))
        return estimate.value

    def measure_costs(self) -> None:
        """What a denoising step takes; calls are timed only if the study asks for it."""
        work, each_s = self.works[0], None
        if self.runner.study.measures_latency:
            ensemble = work.ensemble_at_nodes(work.gather(self._dataset))
            job, wait_timeout_s = work.plan.jobs[0], work.plan.config.execution.wait_timeout_s
            each_s = latencies_s(ensemble, job.resources, wait_timeout_s)
        self.trial = with_costs(self.trial, work.plan, each_s)

    def score(self, rung: str) -> None:
        """Sample and measure under the quick or the full protocol."""
        started_s = time.perf_counter()
        scores: list[Score] = []
        # Seeds share data and protocol, so one reference does for all.
        reference = prepare_reference_of(self.works[0].plan.config, self._runs)
        for work in self.works:
            protocol = self._protocol(work.plan.config, rung)
            ensemble = work.gather(self._dataset)
            scores.append(work.score(ensemble, protocol, reference, on_cluster=True).score)
        # Name, protocol and number of samples are the same for every seed.
        estimate, score = over_seeds([one.estimate for one in scores]), scores[-1]
        measured = set.intersection(*(set(one.others) for one in scores))
        self._add(
            Rung(
                name=rung,
                value=estimate.value,
                stderr=estimate.stderr,
                score_name=score.name,
                protocol_hash=score.protocol_hash,
                num_samples=score.num_samples,
                doubts=tuple(dict.fromkeys(doubt for one in scores for doubt in one.doubts)),
                others={
                    name: over_seeds([one.other_estimates[name] for one in scores])
                    for name in score.others
                    if name in measured
                },
                unavailable={name: why for one in scores for name, why in one.unavailable.items()},
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
        return Configurations(self.runner.study).seeded(self.trial.values_with_growth, self.trial.number)

    @cached_property
    def _dataset(self) -> PreparedDataset:
        return prepare_data_of(self._configs[0], self._runs)

    def _work(self, config: RunConfig, share: float) -> Work:
        plan = make_plan(with_training_share(config, share), self._dataset.spec(config.data))
        storage = self.runner.storage
        store = ExpertStore(self._runs.store, self.runner.store_uri, storage)
        work = Work(plan, self._runs, store, self._runs.run(config.name, plan.fingerprint), storage)
        # A part of the training is no run of its own: its directory would be listed beside the real ones.
        if share == 1:
            work.write_description()
            self.trial = self.trial.with_run(work.run.path.name)
        return work

    def _protocol(self, config: RunConfig, rung: str) -> ProtocolConfig:
        return config.evaluation if rung == FULL else self.runner.study.quick_protocol(config)

    def _used(self, work: Work, share: float) -> list[UsedJob]:
        paths = self.runner.study.space
        return [
            used_job(job, paths, trained=is_first(work.store.path(job.key), self._name), brief=share < 1)
            for job in work.plan.jobs
        ]

    @property
    def _name(self) -> str:
        return f"{self.runner.study.name}/{self.trial.number}"

    def _add(self, rung: Rung) -> None:
        self.trial = self.trial.with_rung(rung)


class _ProgressFile:
    """Writes how far training is into a small file that the terminal display reads; marks what is begun."""

    def __init__(self, file: Path, work: Work, mark: Callable[[Path], None]) -> None:
        self._file, self._work, self._mark = file, work, mark
        self._images = dict.fromkeys((job.key for job in work.plan.jobs), 0)
        self._written_s = 0.0

    def __call__(self, event: ExpertEvent) -> None:
        if event.state is ExpertState.STARTING:
            self._mark(self._work.store.path(event.key))
        if event.state.has_weights:
            self._images[event.key] = self._work.plan.by_key[event.key].job.training.images
        elif isinstance(event, Progressed):
            self._images[event.key] = event.images_seen
        if not isinstance(event, Checkpointed):
            self._write(event.state)

    def _write(self, state: ExpertState) -> None:
        if time.monotonic() - self._written_s < PROGRESS_INTERVAL_S:
            return
        self._written_s = time.monotonic()
        total = self._work.plan.images
        with suppress(OSError):  # words for a display: a full disk is told by what must be kept
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(f"{state.value} {sum(self._images.values()) / total:.0%}")


def _per_interval(curves: Sequence[LossCurve], num_intervals: int) -> list[LossCurve]:
    """A remix has one curve for all of its experts."""
    return list(curves) if len(curves) == num_intervals else [curves[0]] * num_intervals


def _since(started_s: float) -> float:
    return time.perf_counter() - started_s

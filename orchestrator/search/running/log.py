"""A study in MLflow: its run, its configurations' runs below, their experts' below those. One writer, this process."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.plan.jobs import Plan
from orchestrator.plan.places import RunsDir
from orchestrator.search.space.points import flat_numbers
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, factor_saved, metric_name, other_name
from orchestrator.search.study.trial_plans import PlansOf
from orchestrator.store.experts import ExpertStore
from orchestrator.tracking.configuration import log_expert, log_pictures, open_configuration, open_expert
from orchestrator.tracking.names import PROTOCOL_TAG, SCORE_TAG, STUDY_TAG, TRUST_TAG
from orchestrator.tracking.notes import RunStatus
from orchestrator.tracking.tracker import Tracker
from workloads.training.records import read_records

RUN_STATUS: dict[str, RunStatus] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


class StudyLog:
    """Hands on what ended. A listener of the driver."""

    def __init__(
        self,
        study: Study,
        tracker: Tracker,
        runs: RunsDir,
        store: ExpertStore,
        plans_of: PlansOf,
        known: Sequence[Trial] = (),
    ) -> None:
        """known: configurations of earlier calls, which are in MLflow already."""
        self._study, self._tracker, self._runs, self._store, self._plans_of = study, tracker, runs, store, plans_of
        # MLflow takes no asterisk in a name.
        space = {f"space.{path.replace('*', 'each')}": law.model_dump(mode="json") for path, law in study.space.items()}
        self.run = tracker.study(study.name, {**space, "sampler": study.sampler, "objectives": study.objectives})
        self._images = {trial.number: (trial.images_trained, trial.images_reused) for trial in known if trial.jobs}
        self._pictured: set[str] = set()
        self._best = min((rung.value for trial in known if (rung := trial.rung(study.ladder.target))), default=None)

    def __call__(self, trial: Trial) -> None:
        """Write down a configuration that has ended (again, when a finalist got its full score)."""
        # What it has so far is in the ledger; a run that is written once is never half a run.
        if trial.state == "running":
            return
        # The last plans are those of the whole training, one per seed; others have no run directory.
        plans = self._plans_of(trial.values_with_growth, trial.number)[-len(self._study.seeds) :]
        for plan, run_name in zip(plans, trial.runs, strict=False):
            self._log(trial, plan, run_name)
        self._log_study(trial)

    def end(self, status: RunStatus, report: Path | None) -> None:
        """The study's last word for now."""
        if report is not None:
            self.run.log_artifact(report)
        self.run.finish(status)

    def _log(self, trial: Trial, plan: Plan, run_name: str) -> None:
        varied = {f"space.{path}": value for path, value in flat_numbers(trial.values).items()}
        run = open_configuration(self._tracker, plan, run_name, parent=self.run, more=varied)
        for job in plan.jobs:
            result = self._store.completed(job.key)
            # A configuration that failed has experts that are not there.
            if result is not None:
                expert = open_expert(self._tracker, run, job)
                place = self._runs.job(job.key)
                # Configurations share experts.
                if job.key not in self._pictured:
                    log_pictures(expert, place)
                    self._pictured.add(job.key)
                log_expert(expert, result, read_records(place.records))
        metrics: dict[str, float] = {"images_trained": trial.images_trained, "images_reused": trial.images_reused}
        metrics |= {"num_parameters": trial.num_parameters, "macs": trial.macs}
        if trial.latency_s is not None:
            metrics["latency_s"] = trial.latency_s
        if trial.predicted_loss is not None:
            metrics["predicted_loss"] = trial.predicted_loss
        for rung in trial.rungs:
            metrics |= {metric_name(rung): rung.value}
            if rung.stderr is not None:
                metrics |= {f"{metric_name(rung)}_stderr": rung.stderr}
            for name, other in rung.others.items():
                metrics |= {other_name(rung, name): other.value}
                if other.stderr is not None:
                    metrics |= {f"{other_name(rung, name)}_stderr": other.stderr}
        run.log_metrics(metrics)
        for file in self._runs.run_named(run_name).all_grids():
            run.log_artifact(file)
        tags = {STUDY_TAG: self._study.name, "rememe.number": str(trial.number), "rememe.state": trial.state}
        hashes = {f"rememe.protocol_hash.{rung.name}": rung.protocol_hash for rung in trial.rungs if rung.protocol_hash}
        hashes |= {f"{TRUST_TAG}.{rung.name}": _trust_in(rung) for rung in trial.rungs if rung.doubts}
        last = trial.rung(self._study.ladder.target)
        if last is not None:
            tags |= {SCORE_TAG: metric_name(last), PROTOCOL_TAG: last.name, TRUST_TAG: _trust_in(last)}
        run.set_tags(tags | hashes | ({"rememe.error": trial.error} if trial.error else {}))
        run.finish(RUN_STATUS[trial.state])

    def _log_study(self, trial: Trial) -> None:
        self._images[trial.number] = (trial.images_trained, trial.images_reused)
        trained = sum(count for count, _ in self._images.values())
        reused = sum(count for _, count in self._images.values())
        metrics = {"images_trained": float(trained), "images_reused": float(reused)}
        factor = factor_saved(trained, reused)
        if factor is not None:
            metrics["factor_saved"] = factor
        rung = trial.rung(self._study.ladder.target)
        if rung is not None and not rung.doubts and (self._best is None or rung.value < self._best):
            self._best = metrics[f"best_{metric_name(rung)}"] = rung.value
        # A step per configuration, so that MLflow draws the best score over the course of the search.
        self.run.log_metrics(metrics, step=len(self._images))


def _trust_in(rung: Rung) -> str:
    return f"no: {'; '.join(rung.doubts)}" if rung.doubts else "yes"

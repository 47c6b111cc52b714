"""From an earlier study's networks to proposals for the next: what their losses by timestep say is best."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.jobs import Plan, architecture_of
from orchestrator.plan.places import RunsDir
from orchestrator.search.inference.assignment import (
    Architecture,
    Assignment,
    Limits,
    Measured,
    best_assignments,
    predicted_loss,
)
from orchestrator.search.running.driver import Proposal
from orchestrator.search.space.laws import Boundaries
from orchestrator.search.space.points import Values
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.ledger import open_ledger
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial, UsedJob
from workloads.analysis.curves import LossCurve, newest_curve
from workloads.config import RunConfig
from workloads.config.job import expert_job
from workloads.errors import ConfigError
from workloads.sealed import read_json


@dataclass(frozen=True)
class Forecast:
    """What was measured, and what it leads to."""

    measured: Sequence[Measured]
    proposals: Sequence[Proposal]

    def predict(self, plan: Plan) -> float | None:
        """Held-out loss to expect of a configuration; None if it has an architecture that was never measured."""
        names = [architecture_of(job.job.model) for job in plan.jobs]
        # A remix is one job for all intervals, and no network of it was measured alone.
        if not set(names) <= {one.architecture for one in self.measured} or len(names) != len(plan.config.intervals):
            return None
        return predicted_loss(self.measured, plan.config.intervals, names)


def forecast_from_study(study: Study, earlier: str, runs: RunsDir, *, num_best: int) -> Forecast:
    """The best configurations of `study` that the networks of the `earlier` one predict.

    ConfigError if nothing can be predicted: no losses were measured, the strategy has no experts of its own, or no
    configuration satisfies the study's limits.
    """
    ledger = open_ledger(runs, earlier)
    measured, models = _measured(ledger.trials(), runs)
    if not measured:
        raise ConfigError(
            f"study {earlier} has no network whose held-out loss is known; give it ladder.held_out and search again"
        )
    configurations = Configurations(study)
    # The base alone may be no valid run description; the first configuration is.
    base = configurations.config(configurations.first()[0], study.name)
    strategy = base.strategy
    if not strategy.trains_alone:
        raise ConfigError(f"--plan-from plans experts that are trained alone, and strategy.kind is {strategy.kind}")
    costs = {name: cost for name, (_, cost) in models.items()}
    if study.limits.latency_s is not None and any(cost.latency_s is None for cost in costs.values()):
        raise ConfigError(
            f"limits.latency_s is {study.limits.latency_s:g}, but study {earlier} has timed no calls; "
            "search again under a new name with objectives [score, latency_s] (experts are reused), or leave it out"
        )
    limits = Limits(**study.limits.model_dump())
    found = best_assignments(
        measured,
        costs,
        num_timesteps=base.diffusion.num_timesteps,
        positions=_cut_positions(study, base),
        num_experts=_expert_counts(study, base),
        limits=limits,
        num_best=num_best,
    )
    proposals = [Proposal(_values(study, base, one, models), one.predicted_loss) for one in found]
    # The dynamic programme knows limits but no conditions, so these are held against its answer.
    return Forecast(measured, [proposal for proposal in proposals if configurations.admits(proposal.values)])


def _expert_counts(study: Study, base: RunConfig) -> list[int]:
    """How many intervals a proposal may have."""
    law = study.space.get("strategy.cuts")
    # The experts of a MEME are listed in the base, so their number is given.
    if isinstance(law, Boundaries) and base.strategy.architectures is None:
        given = law.boundaries
        return sorted({*given.num_experts, *(len(cuts) + 1 for cuts in given.cuts)})
    return [len(base.intervals)]


def _cut_positions(study: Study, base: RunConfig) -> list[int]:
    """Where a proposal may have its cuts."""
    law = study.space.get("strategy.cuts")
    if not isinstance(law, Boundaries):
        return list(base.intervals.cuts)
    given = law.boundaries
    if given.cuts:
        return sorted({cut for cuts in given.cuts for cut in cuts})
    return list(range(given.step, base.diffusion.num_timesteps, given.step))


def _measured(
    trials: Sequence[Trial], runs: RunsDir
) -> tuple[list[Measured], dict[str, tuple[Mapping[str, Any], Architecture]]]:
    """One entry per network with a curve; networks of brief training only if some architecture has no other.

    Losses after a part of the training and after all of it are not compared with each other.
    """
    jobs = {job.key: job for trial in trials for job in trial.jobs}
    curves = {key: curve for key in jobs if (curve := newest_curve(runs.store / key)) is not None}
    whole = {key for key in curves if not jobs[key].brief}
    # One that was only trained briefly would never be proposed otherwise, so brief training is compared for all.
    if {jobs[key].architecture for key in curves} != {jobs[key].architecture for key in whole}:
        whole = {key for key in curves if jobs[key].brief}
    models = {jobs[key].architecture: (_model(runs, key), _cost(jobs[key], jobs.values())) for key in whole}
    return [_entry(jobs[key], curves[key]) for key in sorted(whole)], models


def _entry(job: UsedJob, curve: LossCurve) -> Measured:
    return Measured(job.architecture, job.interval, curve)


def _cost(job: UsedJob, jobs: Iterable[UsedJob]) -> Architecture:
    """The job's parameters and multiply-adds, which are its architecture's; its latency is the median of all such."""
    # Single timings scatter.
    timed_s = [one.latency_s for one in jobs if one.architecture == job.architecture and one.latency_s is not None]
    return Architecture(job.num_parameters, job.macs, statistics.median(timed_s) if timed_s else None)


def _model(runs: RunsDir, key: str) -> Mapping[str, Any]:
    """The architecture's description as its training left it."""
    job = read_json(runs.job(key).description, expert_job, f"remove {runs.job(key).path} to train it again")
    model: Mapping[str, Any] = job.model.model_dump(mode="json")
    return model


def _values(
    study: Study, base: RunConfig, assignment: Assignment, models: Mapping[str, tuple[Mapping[str, Any], Architecture]]
) -> Values:
    """The assignment as a point of the study: its cuts, and of each expert's model what differs from the base's."""
    values: Values = {}
    if any(path.startswith(("strategy.cuts", "strategy.num_experts")) for path in study.space):
        values["strategy.cuts"] = list(assignment.cuts)
    listed = base.strategy.architectures
    if listed is not None:
        for index, name in enumerate(assignment.architectures):
            model = models[name][0]
            known = listed[index].model_dump(mode="json")
            for field, value in model.items():
                path = f"strategy.experts.{index}.model.{field}"
                # What does not vary is named only where the network that was measured differs in it.
                if f"strategy.experts.*.model.{field}" in study.space or known.get(field) != value:
                    values[path] = value
    return values

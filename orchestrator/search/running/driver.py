"""What to look at next and what came of it: the state of a study while it runs. No Ray, no MLflow, no terminal."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.jobs import Plan
from orchestrator.search.running.growth import Growth
from orchestrator.search.space.points import Values
from orchestrator.search.space.samplers import Sampler
from orchestrator.search.space.sources import MAX_TRIES
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.options import FULL
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial, reached
from orchestrator.search.study.trial_plans import PlansOf, images_by_key

TrialListener = Callable[[Trial], None]
"""Hears of every change of a configuration's state or score."""


@dataclass(frozen=True)
class Proposal:
    """A point to look at first, and the held-out loss that a forecast expects there."""

    values: Values
    predicted_loss: float


class Driver:
    """ask() and tell(), with a ledger that is written before anything depends on it."""

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        sampler: Sampler,
        plans_of: PlansOf,
        *,
        max_failures: int,
        predict: Callable[[Plan], float | None],
        proposals: Sequence[Proposal] = (),
        growth: Growth | None = None,
        listeners: Sequence[TrialListener] = (),
    ) -> None:
        """plans_of gives a configuration's plans; predict the loss to expect of the last of them."""
        self._study, self._ledger, self._sampler, self._plans_of = study, ledger, sampler, plans_of
        self._max_failures, self._predict, self._growth, self._listeners = max_failures, predict, growth, listeners
        self.trials = {trial.number: trial for trial in ledger.trials()}
        self._seen = {_key(trial.values) for trial in self.trials.values()}
        # One that failed is tried again: what was in its way may be gone.
        self._unfinished = deque(trial for trial in self.trials.values() if trial.state not in {"finished", "stopped"})
        self._proposals = deque(proposals)
        self._started_s = time.monotonic()
        self._images: dict[str, int] = {}
        """Training images of every job that was begun for this study, by key."""

        self.ended_by = ""
        """Why no further configuration is begun."""

        # A sampler begins empty in every call, so what is known is told again.
        for trial in self.trials.values():
            self._images |= {job.key: job.images for job in trial.jobs if job.trained}
            if trial.state in {"finished", "stopped"}:
                self._tell_sampler(trial)

    def ask(self) -> Trial | None:
        """The next configuration: what was begun before first, then proposals, then the sampler."""
        # Whoever asks a study to end leaves the file, and nothing new is begun while the others write checkpoints.
        if self.ended_by or self._ledger.dir.stop_file.exists():
            return None
        if self._unfinished:
            return self._begin(self._unfinished.popleft())
        # One beyond the budget is passed over, for a cheaper one may still fit.
        for _ in range(MAX_TRIES):
            if self._is_over():
                return None
            trial = self._next()
            if trial is None:
                self.ended_by = "every configuration of the space was looked at"
                return None
            if self._is_affordable(trial):
                return self._begin(trial)
        self.ended_by = "no further configuration was found within the budget of images and the limits"
        return None

    def tell(self, trial: Trial) -> None:
        """Keep what is known of a configuration, and let the sampler learn from one that ended."""
        self._keep(trial)
        self._images |= {job.key: job.images for job in trial.jobs if job.trained}
        if trial.state in {"finished", "stopped", "failed"}:
            self._tell_sampler(trial)
        num_failed = sum(known.state == "failed" for known in self.trials.values())
        if num_failed > self._max_failures and not self.ended_by:
            self.ended_by = f"more than {self._max_failures} configurations failed"
            self._ledger.dir.stop_file.touch()

    def update(self, trial: Trial) -> None:
        """Keep a further score of a configuration that has ended."""
        self._keep(trial)

    def finalists(self) -> list[Trial]:
        """Those that the full protocol is still to be measured for."""
        number = self._study.ladder.finalists
        if number is None:
            return []
        finished = [trial for trial in self.trials.values() if trial.state == "finished"]
        best = reached(finished, self._study.ladder.target)
        return [trial for trial in best[:number] if trial.rung(FULL) is None]

    def _begin(self, trial: Trial) -> Trial:
        begun = trial.model_copy(update={"state": "running", "error": ""})
        self._keep(begun)
        return begun

    def _keep(self, trial: Trial) -> None:
        # On disk before anybody hears of it: a killed process goes on from there.
        self._ledger.write(trial)
        self.trials[trial.number] = trial
        for listener in self._listeners:
            listener(trial)

    def _is_over(self) -> bool:
        budget = self._study.budget
        if budget.num_configurations is not None and len(self.trials) >= budget.num_configurations:
            self.ended_by = f"the budget of {budget.num_configurations} configurations is used up"
        # Of this call; what an earlier one took is not known after a kill.
        elif budget.wall_clock_s is not None and time.monotonic() - self._started_s > budget.wall_clock_s:
            self.ended_by = f"the budget of {budget.wall_clock_s:g} s is used up"
        return bool(self.ended_by)

    def _next(self) -> Trial | None:
        """A point that was not looked at yet, as a configuration."""
        while self._proposals:
            proposal = self._proposals.popleft()
            # An earlier call may have looked at it.
            if _key(proposal.values) not in self._seen:
                return self._make(proposal.values, {}, origin="planner", predicted_loss=proposal.predicted_loss)
        while (asked := self._sampler.ask()) is not None:
            values, draws = asked
            if _key(values) not in self._seen:
                return self._make(values, draws)
        return None

    def _make(self, values: Values, draws: Mapping[str, object], **more: object) -> Trial:
        self._seen.add(_key(values))
        number = max(self.trials, default=-1) + 1
        trial = Trial.model_validate({"number": number, "values": values, "draws": dict(draws), **more})
        if trial.predicted_loss is None:
            predicted = self._predict(self._plans_of(values, number)[-1])
            trial = trial.model_copy(update={"predicted_loss": predicted})
        return trial if self._growth is None else self._growth.grow(trial, list(self.trials.values()))

    def _is_affordable(self, trial: Trial) -> bool:
        plans = self._plans_of(trial.values_with_growth, trial.number)
        # The last plan is the whole training's; a brief one has the same networks.
        if not self._study.limits.admits(plans[-1]):
            return False
        limit = self._study.budget.images_trained
        # A job that was begun for another configuration costs nothing more.
        return limit is None or sum((self._images | images_by_key(plans)).values()) <= limit

    def _tell_sampler(self, trial: Trial) -> None:
        objectives = self._objectives(trial)
        state = trial.state
        assert state in {"finished", "stopped", "failed"}
        # An earlier call may have climbed to another rung, for the number of finalists may change.
        if state == "finished" and objectives is None:
            state = "failed"
        self._sampler.tell(trial.draws, objectives or (), state)

    def _objectives(self, trial: Trial) -> list[float] | None:
        """What the study minimises; of a configuration that was stopped, the last rung it reached."""
        rung = trial.rung(self._study.ladder.target)
        if trial.state == "stopped" and trial.rungs:
            return [trial.rungs[-1].value]
        if rung is None:
            return None
        figures = {"score": rung.value, "macs": trial.macs, "num_parameters": float(trial.num_parameters)}
        # Not measured is not fast: a sampler counts a NaN as a failure.
        figures["latency_s"] = trial.latency_s if trial.latency_s is not None else float("nan")
        return [figures[name] for name in self._study.objectives]


def _key(values: Values) -> str:
    # Proposals name fields in another order than draws do.
    return json.dumps(values, sort_keys=True)

"""Which configuration to look at next: ask and tell. Knows nothing of how a configuration is run or scored."""

import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import MAX_TRIES, NumberSource, RandomSource

DrawPoint = Callable[[NumberSource], Values]
Draws = dict[str, Any]
"""What a model-based sampler drew, by the names it knows; empty for others."""

EndState = Literal["finished", "stopped", "failed"]


class Sampler(Protocol):
    """Ask for a point, tell what came of it."""

    def ask(self) -> tuple[Values, Draws] | None:
        """A point that has not been asked for before; None if there is none left."""

    def tell(self, draws: Draws, objectives: Sequence[float], state: EndState) -> None:
        """What a configuration scored (lower is better), now or in an earlier call."""


class GridSampler:
    """Every combination, in order."""

    def __init__(self, points: Iterator[Values]) -> None:
        self._points = points

    def ask(self) -> tuple[Values, Draws] | None:
        values = next(self._points, None)
        return None if values is None else (values, {})

    def tell(self, draws: Draws, objectives: Sequence[float], state: EndState) -> None:
        """A grid learns nothing."""


class RandomSampler:
    """Independent draws; the same seed draws the same points in the same order."""

    def __init__(self, draw: DrawPoint, admits: Callable[[Values], bool], seed: int) -> None:
        self._draw, self._admits = draw, admits
        self._source = RandomSource(random.Random(seed))
        self._asked: set[str] = set()

    def ask(self) -> tuple[Values, Draws] | None:
        for _ in range(MAX_TRIES):
            values = self._draw(self._source)
            if (text := json.dumps(values)) not in self._asked and self._admits(values):
                self._asked.add(text)
                return values, {}
        return None

    def tell(self, draws: Draws, objectives: Sequence[float], state: EndState) -> None:
        """Random draws learn nothing."""


class OptunaSampler:
    """Optuna's samplers: tree-structured Parzen estimators (one objective or several), or NSGA-II."""

    MAX_REPEATS = 200
    """A model that has found its optimum keeps proposing it; after this many repeats nothing new is left."""

    def __init__(
        self,
        draw: DrawPoint,
        admits: Callable[[Values], bool],
        *,
        kind: Literal["tpe", "nsga2"],
        num_objectives: int,
        seed: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._draw, self._admits = optuna, draw, admits
        sampler: Any
        if kind == "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # constant_liar: what is still running counts as bad, so that its neighbours are not drawn too.
                sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True, group=True)
        else:
            sampler = optuna.samplers.NSGAIISampler(seed=seed)
        self._study = optuna.create_study(directions=["minimize"] * num_objectives, sampler=sampler)
        self._running: dict[str, Any] = {}
        self._asked: set[str] = set()

    def ask(self) -> tuple[Values, Draws] | None:
        for _ in range(self.MAX_REPEATS):
            trial = self._study.ask()
            values = self._draw(OptunaSource(trial))
            if (text := json.dumps(values)) not in self._asked and self._admits(values):
                self._asked.add(text)
                self._running[json.dumps(trial.params, sort_keys=True)] = trial
                return values, dict(trial.params)
            # Neither a repeat nor what the conditions exclude is evidence of anything.
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, draws: Draws, objectives: Sequence[float], state: EndState) -> None:
        if not draws:
            return  # not drawn here but proposed: the model knows no names for it
        trial = self._running.pop(json.dumps(draws, sort_keys=True), None)
        if trial is None:  # of an earlier call: have the same point drawn again
            self._study.enqueue_trial(draws)
            trial = self._study.ask()
            self._asked.add(json.dumps(self._draw(OptunaSource(trial))))
        states = self._optuna.trial.TrialState
        if state == "finished":
            self._study.tell(trial, list(objectives))
        # With several objectives Optuna has no notion of a pruned trial.
        elif state == "stopped" and len(self._study.directions) == 1 and objectives:
            trial.report(objectives[0], step=0)
            self._study.tell(trial, state=states.PRUNED)
        else:
            self._study.tell(trial, state=states.FAIL)


class OptunaSource:
    """Draws that Optuna proposes and learns from."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def category(self, name: str, options: Sequence[Any]) -> Any:
        if len(options) == 1:
            return options[0]
        texts = [json.dumps(option) for option in options]  # Optuna takes no lists as categories
        return options[texts.index(self._trial.suggest_categorical(name, texts))]

    def real(self, name: str, lo: float, hi: float, *, log: bool) -> float:
        drawn: float = self._trial.suggest_float(name, lo, hi, log=log)
        return drawn

    def whole(self, name: str, lo: int, hi: int) -> int:
        drawn: int = self._trial.suggest_int(name, lo, hi)
        return drawn

    def combination(self, name: str, num_places: int, num_chosen: int) -> list[int]:
        """Sorted independent draws, spread so that they differ: near sets have near draws, which a model can learn."""
        if num_chosen == 0:
            return []
        room = num_places - num_chosen
        drawn = sorted(self._trial.suggest_int(f"{name}.{index}", 0, room) for index in range(num_chosen))
        return [place + index for index, place in enumerate(drawn)]

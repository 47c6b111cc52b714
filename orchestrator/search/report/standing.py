"""Who is ahead in a study and by which score: what the page, its pictures and its words go by. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.inference.importance import MIN_CONFIGURATIONS
from orchestrator.search.report import words
from orchestrator.search.space.points import short_path, shown
from orchestrator.search.study.options import FULL, LOSS, QUICK
from orchestrator.search.study.trial import Rung, Trial, is_tied, ranked, reached, rung_heading
from workloads.errors import ConfigError


class Standing:
    """Configurations in order of merit, with the rungs that were reached and the one all are compared by."""

    def __init__(self, name: str, description: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """ConfigError if scores of several protocols share a rung."""
        self.name, self.description, self.trials = name, description, trials
        self.paths = list(description.get("space", {}))
        self.rungs = _rungs(name, trials)
        self.best = ranked(trials, self.rungs)
        self.top_rung = (
            next(found for name in reversed(self.rungs) if (found := self.best[0].rung(name))) if self.best else None
        )
        self.tied = [trial for trial in self.best[1:] if is_tied(self.best[0], trial, self.rungs)]
        self.protocols = [self.protocol(name) for name in reversed(self.rungs)]
        self.judged_by = _judged_by(trials, self.rungs)
        self.judged = reached(trials, self.judged_by)
        """Those that have a score on that rung, best first."""

    @property
    def scores(self) -> list[float]:
        """Of the judged, in their order."""
        return [rung_of(trial, self.judged_by).value for trial in self.judged]

    def heading(self, rung: str) -> str:
        """Of a column with a rung's scores."""
        return rung_heading(self.trials, rung)

    def protocol(self, rung: str) -> str:
        """What a rung's scores were measured by."""
        return words.protocol(rung_of(reached(self.trials, rung)[0], rung), self.description)

    def varied(self, trial: Trial) -> list[str]:
        """What the configuration is, one text per path of the space."""
        return [shown(trial.values, path) for path in self.paths]

    def one_line(self, trial: Trial) -> str:
        """What the configuration is, in one line."""
        return ", ".join(
            f"{short_path(path)} {value}" for path, value in zip(self.paths, self.varied(trial), strict=True)
        )


def rung_of(trial: Trial, name: str) -> Rung:
    """A rung that is known to have been reached."""
    found = trial.rung(name)
    assert found is not None
    return found


def _rungs(study: str, trials: Sequence[Trial]) -> list[str]:
    """Cheapest first; ConfigError if a rung holds scores of several protocols."""
    names = {rung.name for trial in trials for rung in trial.rungs}
    for name in names:
        hashes = {rung_of(trial, name).protocol_hash for trial in reached(trials, name)}
        if len(hashes) > 1:
            raise ConfigError(
                f"study {study} has {name} scores of {len(hashes)} protocols ({', '.join(sorted(hashes))}), which "
                "cannot be compared; search again under a new name (experts are reused)"
            )
    # Brief ones come first, and their names sort by the share of the training.
    order = {LOSS: 1, QUICK: 2, FULL: 3}
    return sorted(names, key=lambda name: (order.get(name, 0), name))


def _judged_by(trials: Sequence[Trial], rungs: Sequence[str]) -> str:
    """The rung to compare all by: of real scores that enough have the one most have, else of losses; dearer first."""
    real = [name for name in rungs if name in {QUICK, FULL} and len(reached(trials, name)) >= MIN_CONFIGURATIONS]
    return max(reversed(real or rungs), key=lambda name: len(reached(trials, name)), default="")

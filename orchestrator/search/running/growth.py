"""Larger remixes start from smaller ones of their study: a search over N and K does not begin anew each time."""

from typing import Any, NamedTuple

from orchestrator.plan.places import RunsDir
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial
from workloads.config import RunConfig


class Growth:
    """Chooses what a configuration starts from."""

    def __init__(self, study: Study, runs: RunsDir) -> None:
        assert study.warm_growth is not None
        self._configurations, self._runs, self._share = Configurations(study), runs, study.warm_growth
        self._finished: dict[int, _Shape | None] = {}
        """By number, so that a long study does not read every configuration again for each new one."""

    def grow(self, trial: Trial, others: list[Trial]) -> Trial:
        """The configuration from the largest finished one that can grow into it, with its share of the training.

        Growing keeps the function (workloads/models/growth.py), which needs at least as many bases and every old cut.
        """
        config = self._config(trial)
        shape = _shape(config)
        if shape is None:
            return trial
        parents = [
            (known.size, -other.number, other)
            for other in others
            if other.state == "finished" and (known := self._shape_of(other)) is not None and known.grows_into(shape)
        ]
        if not parents:
            return trial
        # Of equally large ones the earliest, so that a search that is gone on with chooses alike.
        _, _, parent = max(parents, key=lambda one: one[:2])
        training = config.training
        changes = {
            # The first run is the only one, for warm_growth takes a single seed.
            "initial_weights": str(self._runs.path / parent.runs[0]),
            "training.images": max(training.batch_size, round(self._share * training.images)),
        }
        if config.initial_conversion is not None:  # was of what the smaller remix started from
            changes["initial_conversion"] = None
        return trial.model_copy(update={"growth": changes, "grown_from": parent.number})

    def _config(self, trial: Trial) -> RunConfig:
        return self._configurations.config(trial.values, self._configurations.study.name)

    def _shape_of(self, finished: Trial) -> "_Shape | None":
        if finished.number not in self._finished:
            self._finished[finished.number] = _shape(self._config(finished))
        return self._finished[finished.number]


class _Shape(NamedTuple):
    """What of a remix decides which others it can grow into."""

    fixed: dict[str, Any]
    """What may not differ."""

    cuts: frozenset[int]
    num_bases: int

    @property
    def size(self) -> int:
        return (len(self.cuts) + 1) * self.num_bases

    def grows_into(self, large: "_Shape") -> bool:
        smaller = self.num_bases <= large.num_bases and self.cuts <= large.cuts and self.size < large.size
        return smaller and self.fixed == large.fixed


def _shape(config: RunConfig) -> _Shape | None:
    """None for what cannot grow."""
    growable = config.strategy.growable
    if growable is None:
        return None
    sizes = {"strategy": set(growable.fields), "training": {"images"}}
    fixed = config.model_dump(mode="json", exclude={"name": True, "initial_weights": True, **sizes})
    return _Shape(fixed, frozenset(config.intervals.cuts), growable.num_bases)

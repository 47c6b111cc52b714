"""Larger remixes start from smaller ones of their study: a search over N and K does not begin anew each time."""

from typing import Any

from orchestrator.layout import RunsDir
from orchestrator.search.ledger import Trial
from orchestrator.search.study import Study
from workloads.config import Remix, RunConfig

SIZES = {"strategy": {"num_experts", "cuts", "num_bases"}}
"""What may differ between a remix and the one it grows from."""


class Growth:
    """Chooses what a configuration starts from."""

    def __init__(self, study: Study, runs: RunsDir) -> None:
        assert study.warm_growth is not None
        self._study, self._runs, self._share = study, runs, study.warm_growth

    def grow(self, trial: Trial, others: list[Trial]) -> Trial:
        """The configuration from the largest finished one that can grow into it, with its share of the training.

        Growing keeps the function (workloads/models/growth.py), which needs at least as many bases and every old cut.
        """
        config = self._config(trial)
        if not isinstance(config.strategy, Remix):
            return trial
        parents = [other for other in others if other.state == "finished" and self._fits(self._config(other), config)]
        if not parents:
            return trial
        parent = max(parents, key=lambda other: (_size(self._config(other)), -other.number))
        changes = {
            "initial_weights": str(self._runs.path / parent.runs[0]),
            "training.images": max(config.training.batch_size, round(self._share * config.training.images)),
        }
        return trial.model_copy(update={"growth": changes, "grown_from": parent.number})

    def _config(self, trial: Trial) -> RunConfig:
        return self._study.config(trial.values, self._study.name)

    def _fits(self, small: RunConfig, large: RunConfig) -> bool:
        if not (isinstance(small.strategy, Remix) and isinstance(large.strategy, Remix)):
            return False
        same = _without_sizes(small) == _without_sizes(large)
        grows = small.strategy.num_bases <= large.strategy.num_bases
        refines = set(small.intervals.cuts) <= set(large.intervals.cuts)
        return same and grows and refines and _size(small) != _size(large)


def _size(config: RunConfig) -> int:
    assert isinstance(config.strategy, Remix)
    return len(config.intervals) * config.strategy.num_bases


def _without_sizes(config: RunConfig) -> dict[str, Any]:
    exclude: Any = {"name": True, "initial_weights": True, "training": {"images"}, **SIZES}
    return config.model_dump(mode="json", exclude=exclude)

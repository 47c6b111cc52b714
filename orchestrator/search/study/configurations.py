"""The configurations of a study: points drawn or enumerated, applied to the base, held against conditions. Pure."""

import json
import random
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from orchestrator.search.space.context import Context
from orchestrator.search.space.distributions import Distribution
from orchestrator.search.space.laws import Boundaries, Each
from orchestrator.search.space.points import Values
from orchestrator.search.space.samplers import GridSampler, OptunaSampler, RandomSampler, Sampler
from orchestrator.search.space.sources import MAX_TRIES, NumberSource, RandomSource
from orchestrator.search.space.split_ratios import SplitRatios
from orchestrator.search.study.study import Study
from workloads.config import RunConfig
from workloads.config.load import apply_value, validate
from workloads.errors import ConfigError

NUM_CHECKED = 1000
"""Configurations that `check` looks at."""

INSTEAD = {"strategy.cuts": "num_experts", "strategy.num_experts": "cuts"}
"""Fields that stand for one another: the drawn one replaces the base's other one."""


class Configurations:
    """What a study may try. Iterating gives distinct points that satisfy the conditions, with their run descriptions.

    In the study's order; of a search that learns, what a random one would look at. ConfigError if a point is no valid
    run description though it breaks no condition, or if no point satisfies the conditions.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def __iter__(self) -> Iterator[tuple[Values, RunConfig]]:
        return islice(self._distinct(), self.study.budget.num_configurations)

    def first(self) -> tuple[Values, RunConfig]:
        """The one that stands for all where only the common part of them matters."""
        return next(iter(self))

    def count(self) -> int | None:
        """How many configurations it will have, as far as that is known."""
        limit = self.study.budget.num_configurations
        if self.study.sampler != "grid":
            return limit
        return sum(1 for _ in islice(self._distinct(), limit))

    def seeded(self, values: Values, number: int) -> list[RunConfig]:
        """The run descriptions of a configuration, one per training seed."""
        name = f"{self.study.name}-{number:04d}"
        configs = []
        for seed in self.study.seeds:
            # A single seed is not named, so that its runs are called like the configuration.
            full = name if len(self.study.seeds) == 1 else f"{name}-seed{seed}"
            configs.append(self.config(values, full).model_copy(update={"seed": seed}))
        return configs

    def point(self, source: NumberSource) -> Values:
        """One draw; conditions are not checked."""
        raw, values = self.study.base_raw, Values()
        for path, distribution in self._in_order:
            drawn = distribution.draw(source, path, Context(raw))
            raw = _applied(raw, drawn)
            values |= drawn
        return values

    def config(self, values: Values, name: str) -> RunConfig:
        """The run description at a point. ConfigError if it is not a valid one."""
        try:
            return validate(RunConfig, _applied(self.study.base_raw, values) | {"name": name})
        except ConfigError as error:
            raise ConfigError(f"study {self.study.name}, configuration {name}: {error}") from None

    def admits(self, values: Values) -> bool:
        """Whether the configuration is valid and satisfies all conditions.

        ConfigError if a condition compares what is no number there.
        """
        try:
            config = self.config(values, self.study.name)
        except ConfigError:
            return False
        return self._satisfies(config)

    def grid_points(self) -> Iterator[Values]:
        """Every combination, one by one; conditions are not checked. ConfigError if a field is continuous."""
        return self._grid(self._in_order, self.study.base_raw)

    def check(self) -> None:
        """Raise ConfigError for what can be known to be wrong before anything starts."""
        # A grid may be too long to look at all of it.
        for _ in islice(self._distinct(), NUM_CHECKED):
            pass

    @cached_property
    def _base_with_defaults(self) -> dict[str, Any]:
        """The base with what it leaves out; as it is if it is no valid run description without the space."""
        try:
            return validate(RunConfig, self.study.base_raw | {"name": self.study.name}).model_dump(mode="json")
        except ConfigError:
            return self.study.base_raw

    @property
    def _in_order(self) -> list[tuple[str, Distribution]]:
        """Those that look at the run description come last, so that they see what the others have changed."""
        # The sort is stable: beyond that, the order is the user's, on which draws depend.
        return sorted(self.study.space.items(), key=lambda item: isinstance(item[1], Each | Boundaries | SplitRatios))

    def _grid(self, space: list[tuple[str, Distribution]], raw: dict[str, Any]) -> Iterator[Values]:
        if not space:
            yield {}
            return
        path, distribution = space[0]
        options = distribution.grid(path, Context(raw))
        if options is None:
            raise ConfigError(f"space.{path} is continuous; a grid needs choice, int, each, boundaries or split_ratios")
        for values in options:
            for others in self._grid(space[1:], _applied(raw, values)):
                yield values | others

    def _draws(self) -> Iterator[Values]:
        source = RandomSource(random.Random(self.study.seed))
        while True:
            yield self.point(source)

    def _distinct(self) -> Iterator[tuple[Values, RunConfig]]:
        """Configurations in the order of the grid or of the random draws, until there are no more."""
        seen: set[str] = set()
        num_found, tries_left = 0, float(MAX_TRIES)
        for values in self.grid_points() if self.study.sampler == "grid" else self._draws():
            key = json.dumps(values)
            config = None if key in seen else self._admitted(values, f"{self.study.name}-{num_found:04d}")
            seen.add(key)
            if config is not None:
                yield values, config
                num_found, tries_left = num_found + 1, MAX_TRIES
            # A grid ends by itself; draws could go on for ever.
            elif self.study.sampler != "grid":
                tries_left -= 1
                if not tries_left:
                    break
        if not num_found:
            listed = ", ".join(map(str, self.study.conditions))
            raise ConfigError(f"no configuration of study {self.study.name} satisfies its conditions: {listed}")

    def _admitted(self, values: Values, name: str) -> RunConfig | None:
        """The configuration, if conditions hold. ConfigError if it is invalid though no condition rules it out."""
        try:
            config = self.config(values, name)
        except ConfigError:
            # Conditions are how a user excludes what is invalid; only what they let through is a mistake.
            if self._is_ruled_out(values):
                return None
            raise
        return config if self._satisfies(config) else None

    def _satisfies(self, config: RunConfig) -> bool:
        if not self.study.conditions:
            return True
        description = _counted(config.model_dump(mode="json"))
        return all(condition.holds(description) for condition in self.study.conditions)

    def _is_ruled_out(self, values: Values) -> bool:
        """Whether an invalid point breaks a condition, as far as that can be told."""
        description = _counted(_applied(self._base_with_defaults, values))
        for condition in self.study.conditions:
            try:
                if not condition.holds(description):
                    return True
            except ConfigError:
                continue
        return False


def make_sampler(study: Study, *, num_known: int = 0) -> Sampler:
    """The study's way to choose; num_known configurations of earlier calls are told to it afterwards."""
    configurations = Configurations(study)
    if study.sampler == "grid":
        return GridSampler(values for values in configurations.grid_points() if configurations.admits(values))
    if study.sampler == "random":
        return RandomSampler(configurations.point, configurations.admits, study.seed)
    return OptunaSampler(
        configurations.point,
        configurations.admits,
        kind=study.sampler,
        num_objectives=len(study.objectives),
        seed=study.seed + num_known,  # going on is not to draw the same beginning again
    )


def _applied(raw: dict[str, Any], values: Values) -> dict[str, Any]:
    for path, value in values.items():
        raw = apply_value(raw, path, value)
        # A section gives several fields at once.
        given = {f"{path}.{key}" for key in value} if isinstance(value, dict) else {path}
        for field in given & INSTEAD.keys():
            section, other = field.partition(".")[0], INSTEAD[field]
            # If the space gives both, that is a mistake to be reported, not one to be hidden here.
            if f"{section}.{other}" not in values.keys() | given:
                raw = raw | {section: {key: kept for key, kept in raw[section].items() if key != other}}
    return raw


def _counted(description: dict[str, Any]) -> dict[str, Any]:
    """The same with strategy.num_experts where cuts or experts say it."""
    strategy = description.get("strategy")
    if not isinstance(strategy, dict):
        return description
    cuts, experts = strategy.get("cuts"), strategy.get("experts")
    if isinstance(cuts, list):
        return description | {"strategy": strategy | {"num_experts": len(cuts) + 1}}
    if isinstance(experts, list):
        return description | {"strategy": strategy | {"num_experts": len(experts)}}
    return description

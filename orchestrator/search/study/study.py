"""A study: a base run description, what may vary in it, and how many configurations to look at. Pure."""

import json
import random
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice, permutations
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.search.space.condition import Condition
from orchestrator.search.space.context import Context
from orchestrator.search.space.distributions import AnyDistribution, parse_distribution
from orchestrator.search.space.laws import Boundaries, Each
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import MAX_TRIES, NumberSource, RandomSource
from orchestrator.search.space.split_ratios import SplitRatios
from orchestrator.search.study.options import Budget, EarlyStop, Ladder, LimitsConfig, Objective
from workloads.config import AnyModel, Meme, ProtocolConfig, RunConfig
from workloads.config.base import StrictConfig
from workloads.config.load import apply_value, read_raw, validate
from workloads.config.strategy import merge
from workloads.errors import ConfigError

NUM_CHECKED = 1000
"""Configurations that `check` looks at."""

INSTEAD = {"strategy.cuts": "num_experts", "strategy.num_experts": "cuts"}
"""Fields that stand for one another: the drawn one replaces the base's other one."""


class Study(StrictConfig):
    """Read from YAML like a run description; `rememe plan` says what it would take."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study."""

    base: str | dict[str, Any]
    """What does not vary: a preset's name, a file, or a run description."""

    space: dict[str, Any] = Field(min_length=1)
    """Distribution of each field that varies, by dotted path; `*` stands for every element of a list."""

    conditions: tuple[Condition, ...] = ()
    """What a configuration must satisfy, for instance strategy.num_bases < strategy.num_experts."""

    sampler: Literal["grid", "random", "tpe", "nsga2"] = "random"
    """grid: every combination; random: independent draws; tpe: tree-structured Parzen estimators, for one objective or
    several; nsga2: a genetic algorithm for several (both of Optuna)."""

    seed: int = 0
    """Of the sampler."""

    objectives: tuple[Objective, ...] = Field(("score",), min_length=1)
    """What is minimised. The score is that of the dearest rung that all configurations are to reach."""

    budget: Budget = Budget()
    """When to stop looking."""

    limits: LimitsConfig = LimitsConfig()
    """What a configuration may cost."""

    ladder: Ladder = Ladder()
    """What is measured of a configuration, cheap scores first."""

    early_stop: EarlyStop | None = None
    """Whether a configuration is given up while it climbs. None: never."""

    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Training seeds of every configuration; the score is their mean, and their spread enters its interval."""

    warm_growth: float | None = Field(None, gt=0, le=1)
    """Start a larger remix from a finished smaller one, with this share of training.images. None: from scratch."""

    max_concurrent: int = Field(2, ge=1)
    """Configurations at a time; they share the cluster, and what their experts ask for is execution.resources."""

    @field_validator("space")
    @classmethod
    def _parse_space(cls, space: dict[str, Any]) -> dict[str, Any]:
        for path, other in permutations(space, 2):
            if re.fullmatch(re.escape(path).replace(r"\*", r"\d+"), other):
                raise ValueError(f"{path} and {other} give the same field a value; leave one of them out")
        return {path: parse_distribution(path, raw) for path, raw in space.items()}

    @model_validator(mode="after")
    def _check_together(self) -> "Study":
        for path in self.space:
            if path.split(".")[0] in {"evaluation", "reference", "execution", "name", "seed"}:
                raise ValueError(
                    f"space.{path}: a study compares under one protocol and fixed seeds; leave it out"
                    " (seeds lists training seeds)"
                )
        if self.early_stop is not None and self.ladder.held_out is None:
            raise ValueError("early_stop compares held-out losses; give ladder.held_out, for instance {}")
        if self.sampler == "nsga2" and len(self.objectives) == 1:
            raise ValueError("sampler nsga2 is for several objectives; add one, for instance macs, or take tpe")
        if "score" not in self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives is {list(self.objectives)}; it must hold score, and each one once")
        if self.warm_growth is not None and len(self.seeds) > 1:
            raise ValueError(
                "warm_growth takes a single seed, for a configuration starts from one other; shorten seeds"
            )
        if self.sampler != "grid" and self.budget.is_unlimited:
            raise ValueError(f"budget: missing; a {self.sampler} search needs to know when to stop")
        return self

    def identity(self) -> dict[str, Any]:
        """What may not change while a study goes on, for configurations could not be compared any more."""
        some = next(self.configurations())[1]
        quick = None if self.ladder.quick is None else self.quick_protocol(some).model_dump(mode="json")
        return {
            "name": self.name,
            "base": _without(self._base, "evaluation", "execution"),
            "space": {path: law.model_dump(mode="json", exclude_defaults=True) for path, law in self.space.items()},
            "conditions": [str(condition) for condition in self.conditions],
            "objectives": list(self.objectives),
            "ladder": self.ladder.model_dump(mode="json", exclude={"quick", "finalists"}),
            "evaluation": some.evaluation.model_dump(mode="json"),
            "quick": quick,
            "num_timesteps": some.diffusion.num_timesteps,
            "seeds": list(self.seeds),
            "warm_growth": self.warm_growth,
        }

    @property
    def size(self) -> int | None:
        """How many configurations it will have, as far as that is known."""
        limit = self.budget.num_configurations
        if self.sampler != "grid":
            return limit
        return sum(1 for _ in islice(self._distinct(), limit))

    @property
    def measures_latency(self) -> bool:
        """Whether calls are timed: it takes a while, and only these ask for it."""
        return "latency_s" in self.objectives or self.limits.latency_s is not None

    def seeded(self, values: Values, number: int) -> list[RunConfig]:
        """The run descriptions of a configuration, one per training seed."""
        name = f"{self.name}-{number:04d}"
        configs = []
        for seed in self.seeds:
            full = name if len(self.seeds) == 1 else f"{name}-seed{seed}"
            configs.append(self.config(values, full).model_copy(update={"seed": seed}))
        return configs

    def quick_protocol(self, config: RunConfig) -> ProtocolConfig:
        """The cheaper protocol of a run."""
        assert self.ladder.quick is not None
        raw = merge(
            config.evaluation.model_dump(mode="json"), {"name": f"{config.evaluation.name}-quick"} | self.ladder.quick
        )
        return validate(ProtocolConfig, raw)

    def label(self, model: AnyModel) -> str:
        """What tells an architecture from others of the study: its varied fields, or its kind."""
        dumped = model.model_dump(mode="json")
        fields = [path.partition("model.")[2].split(".")[0] for path in self.space if "model." in path]
        words = [f"{field} {_words(dumped[field])}" for field in dict.fromkeys(fields) if field in dumped]
        return ", ".join(words) or str(dumped["kind"])

    def expert_counts(self, base: RunConfig) -> list[int]:
        """How many intervals a planned configuration may have."""
        law = self.space.get("strategy.cuts")
        if isinstance(law, Boundaries) and not isinstance(base.strategy, Meme):
            given = law.boundaries
            return sorted({*given.num_experts, *(len(cuts) + 1 for cuts in given.cuts)})
        return [len(base.intervals)]

    def cut_positions(self, base: RunConfig) -> list[int]:
        """Where a planned configuration may have its cuts."""
        law = self.space.get("strategy.cuts")
        if not isinstance(law, Boundaries):
            return list(base.intervals.cuts)
        given = law.boundaries
        if given.cuts:
            return sorted({cut for cuts in given.cuts for cut in cuts})
        return list(range(given.step, base.diffusion.num_timesteps, given.step))

    def base_raw(self) -> dict[str, Any]:
        """The base as a mapping, a named protocol spelt as one. ConfigError if there is no such preset or file."""
        return dict(self._base)

    def point(self, source: NumberSource) -> Values:
        """One draw; conditions are not checked."""
        raw, values = self._base, Values()
        for path, distribution in self._in_order:
            drawn = distribution.draw(source, path, Context(raw))
            raw = _applied(raw, drawn)
            values |= drawn
        return values

    def config(self, values: Values, name: str) -> RunConfig:
        """The run description at a point. ConfigError if it is not a valid one."""
        try:
            return validate(RunConfig, _applied(self._base, values) | {"name": name})
        except ConfigError as error:
            raise ConfigError(f"study {self.name}, configuration {name}: {error}") from None

    def admits(self, values: Values) -> bool:
        """Whether the configuration is valid and satisfies all conditions.

        ConfigError if a condition compares what is no number there.
        """
        try:
            config = self.config(values, self.name)
        except ConfigError:
            return False
        return self._satisfies(config)

    def grid_points(self) -> Iterator[Values]:
        """Every combination, one by one; conditions are not checked. ConfigError if a field is continuous."""
        return self._grid(self._in_order, self._base)

    def configurations(self) -> Iterator[tuple[Values, RunConfig]]:
        """Distinct points that satisfy the conditions, with their run descriptions, in the study's order.

        Of a search that learns, what a random one would look at. ConfigError if a point is no valid run description
        though it breaks no condition, or if no point satisfies the conditions.
        """
        yield from islice(self._distinct(), self.budget.num_configurations)

    def check(self) -> None:
        """Raise ConfigError for what can be known to be wrong before anything starts."""
        for _ in islice(self._distinct(), NUM_CHECKED):
            pass

    @cached_property
    def _base(self) -> dict[str, Any]:
        raw = read_raw(self.base) if isinstance(self.base, str) else self.base
        evaluation = raw.get("evaluation")
        return raw | {"evaluation": {"name": evaluation}} if isinstance(evaluation, str) else raw

    @cached_property
    def _base_with_defaults(self) -> dict[str, Any]:
        """The base with what it leaves out; as it is if it is no valid run description without the space."""
        try:
            return validate(RunConfig, self._base | {"name": self.name}).model_dump(mode="json")
        except ConfigError:
            return self._base

    @property
    def _in_order(self) -> list[tuple[str, AnyDistribution]]:
        """Those that look at the run description come last, so that they see what the others have changed."""
        return sorted(self.space.items(), key=lambda item: isinstance(item[1], Each | Boundaries | SplitRatios))

    def _grid(self, space: list[tuple[str, AnyDistribution]], raw: dict[str, Any]) -> Iterator[Values]:
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
        source = RandomSource(random.Random(self.seed))
        while True:
            yield self.point(source)

    def _distinct(self) -> Iterator[tuple[Values, RunConfig]]:
        """Configurations in the order of the grid or of the random draws, until there are no more."""
        seen: set[str] = set()
        num_found, tries_left = 0, float(MAX_TRIES)
        for values in self.grid_points() if self.sampler == "grid" else self._draws():
            key = json.dumps(values)
            config = None if key in seen else self._admitted(values, f"{self.name}-{num_found:04d}")
            seen.add(key)
            if config is not None:
                yield values, config
                num_found, tries_left = num_found + 1, MAX_TRIES
            elif self.sampler != "grid":
                tries_left -= 1
                if not tries_left:
                    break
        if not num_found:
            listed = ", ".join(map(str, self.conditions))
            raise ConfigError(f"no configuration of study {self.name} satisfies its conditions: {listed}")

    def _admitted(self, values: Values, name: str) -> RunConfig | None:
        """The configuration, if conditions hold. ConfigError if it is invalid though no condition rules it out."""
        try:
            config = self.config(values, name)
        except ConfigError:
            if self._is_ruled_out(values):
                return None
            raise
        return config if self._satisfies(config) else None

    def _satisfies(self, config: RunConfig) -> bool:
        if not self.conditions:
            return True
        description = _counted(config.model_dump(mode="json"))
        return all(condition.holds(description) for condition in self.conditions)

    def _is_ruled_out(self, values: Values) -> bool:
        """Whether an invalid point breaks a condition, as far as that can be told."""
        description = _counted(_applied(self._base_with_defaults, values))
        for condition in self.conditions:
            try:
                if not condition.holds(description):
                    return True
            except ConfigError:
                continue
        return False


def _without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _applied(raw: dict[str, Any], values: Values) -> dict[str, Any]:
    for path, value in values.items():
        raw = apply_value(raw, path, value)
        section, _, _ = path.rpartition(".")
        other = INSTEAD.get(path)
        if other is not None and f"{section}.{other}" not in values:
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

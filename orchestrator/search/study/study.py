"""What a study is: a base run description, what may vary in it, what is measured, when to stop. Pure.

configurations.py makes run descriptions of it, trial_plans.py the plans behind them.
"""

from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.search.space.condition import Condition
from orchestrator.search.space.distributions import parse_distribution
from orchestrator.search.study.options import Budget, EarlyStop, Ladder, LimitsConfig, Objective
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.base import Name, Real, Seeds, StrictConfig, Whole, merge
from workloads.config.load import read_raw, validate


class Study(StrictConfig):
    """Read from YAML like a run description; `rememe plan` says what it would take."""

    name: Name
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

    seed: Whole = 0
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

    seeds: Seeds = (0,)
    """Training seeds of every configuration; the score is their mean, and their spread enters its interval."""

    warm_growth: Real | None = Field(None, gt=0, le=1)
    """Start a larger remix from a finished smaller one, with this share of training.images. None: from scratch."""

    max_concurrent: Whole = Field(2, ge=1)
    """Configurations at a time; they share the cluster, and what their experts ask for is execution.resources."""

    @field_validator("space")
    @classmethod
    def _parse_space(cls, space: dict[str, Any]) -> dict[str, Any]:
        for path, other in combinations(space, 2):
            # The later one would silently win.
            if _overlap(path, other):
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

    def identity(self, first: RunConfig) -> dict[str, Any]:
        """What may not change while a study goes on, for configurations could not be compared any more.

        first: the run description of its first configuration.
        """
        quick = None if self.ladder.quick is None else self.quick_protocol(first).model_dump(mode="json")
        return {
            "name": self.name,
            # The protocol is written out below, and how a run is executed does not change its result.
            "base": _without(self.base_raw, "evaluation", "execution"),
            "space": {path: law.model_dump(mode="json", exclude_defaults=True) for path, law in self.space.items()},
            "conditions": [str(condition) for condition in self.conditions],
            "objectives": list(self.objectives),
            # The quick protocol is written out too, and the number of finalists changes no score.
            "ladder": self.ladder.model_dump(mode="json", exclude={"quick", "finalists"}),
            "evaluation": first.evaluation.model_dump(mode="json"),
            "quick": quick,
            "num_timesteps": first.diffusion.num_timesteps,
            "seeds": list(self.seeds),
            "warm_growth": self.warm_growth,
        }

    @property
    def measures_latency(self) -> bool:
        """Whether calls are timed: it takes a while, and only these ask for it."""
        return "latency_s" in self.objectives or self.limits.latency_s is not None

    def quick_protocol(self, config: RunConfig) -> ProtocolConfig:
        """The cheaper protocol of a run."""
        assert self.ladder.quick is not None
        raw = merge(
            config.evaluation.model_dump(mode="json"), {"name": f"{config.evaluation.name}-quick"} | self.ladder.quick
        )
        return validate(ProtocolConfig, raw)

    @cached_property
    def base_raw(self) -> dict[str, Any]:
        """The base as a mapping, a named protocol spelt as one. ConfigError if there is no such preset or file."""
        # Read once: a process on another node gets it with the study, and need not see the file.
        raw = read_raw(self.base) if isinstance(self.base, str) else self.base
        evaluation = raw.get("evaluation")
        return raw | {"evaluation": {"name": evaluation}} if isinstance(evaluation, str) else raw


def _overlap(path: str, other: str) -> bool:
    """Whether both set the same field: the same one, one of a section or list that the other sets, or by `*`."""
    pairs = zip(path.split("."), other.split("."), strict=False)
    return all(one == two or ("*" in (one, two) and (one + two).strip("*").isdecimal()) for one, two in pairs)


def _without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}

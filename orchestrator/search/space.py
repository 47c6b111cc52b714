"""What may vary in a study: distributions over fields of a run description. Pure; knows no search algorithm.

space:
  training.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
  strategy.cuts: {boundaries: {num_experts: 4, step: 50}}
  strategy.experts.*.model.attention_share: {each: [[1/4], [1/2], [3/4]], monotone: true}
conditions: [strategy.num_bases < strategy.num_experts]
"""

import itertools
import math
import operator
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workloads.config.base import StrictConfig

Values = dict[str, Any]
"""Dotted path to value: one point of a space."""

MAX_TRIES = 10_000
"""Draws that break a condition before the conditions count as contradictory."""


class Choice(StrictConfig):
    """One of several values, equally likely."""

    choice: tuple[Any, ...] = Field(min_length=1)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.choice)

    def grid(self) -> Sequence[Any]:
        return self.choice


class Uniform(StrictConfig):
    """A real number between two."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _check(self) -> "Uniform":
        _check_range("uniform", *self.uniform)
        return self

    def draw(self, rng: random.Random) -> float:
        return rng.uniform(*self.uniform)

    def grid(self) -> None:
        return None


class LogUniform(StrictConfig):
    """A real number between two, its logarithm uniform."""

    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _check(self) -> "LogUniform":
        _check_range("log_uniform", *self.log_uniform)
        return self

    def draw(self, rng: random.Random) -> float:
        lo, hi = self.log_uniform
        return min(hi, max(lo, math.exp(rng.uniform(math.log(lo), math.log(hi)))))

    def grid(self) -> None:
        return None


class Int(StrictConfig):
    """A whole number between two, both included."""

    int: tuple[int, int]

    @model_validator(mode="after")
    def _check(self) -> "Int":
        _check_range("int", *self.int)
        return self

    def draw(self, rng: random.Random) -> Any:
        return rng.randint(*self.int)

    def grid(self) -> Sequence[Any]:
        lo, hi = self.int
        return range(lo, hi + 1)


class BoundariesLaw(StrictConfig):
    """N - 1 ordered cuts on multiples of a step, so that configurations share experts."""

    num_experts: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=1)] = 50
    num_timesteps: Annotated[int, Field(ge=2)] = 1000

    @model_validator(mode="after")
    def _check(self) -> "BoundariesLaw":
        if self.num_experts - 1 > len(self.places):
            raise ValueError(
                f"{self.num_experts - 1} cuts do not fit on the {len(self.places)} multiples of step {self.step} "
                f"inside (0, {self.num_timesteps})"
            )
        return self

    @property
    def places(self) -> range:
        """Where a cut may lie."""
        return range(self.step, self.num_timesteps, self.step)


class Boundaries(StrictConfig):
    """Every set of cuts equally likely: uniform on the simplex of interval lengths, up to the step."""

    boundaries: BoundariesLaw

    def draw(self, rng: random.Random) -> list[Any]:
        return sorted(rng.sample(self.boundaries.places, self.boundaries.num_experts - 1))

    def grid(self) -> Sequence[Any]:
        law = self.boundaries
        return [list(cuts) for cuts in itertools.combinations(law.places, law.num_experts - 1)]


class Each(StrictConfig):
    """For a path with `*`: one of several values for each element, for instance split ratios for each expert."""

    each: tuple[Any, ...] = Field(min_length=1)
    monotone: bool = False
    """Never fall back to an earlier value as the index rises (MEME's design rule: attention rises with t)."""

    def draw(self, rng: random.Random, count: Any) -> tuple[Any, ...]:
        if self.monotone:  # every monotone sequence equally likely: stars and bars
            places = sorted(rng.sample(range(len(self.each) + count - 1), count))
            return tuple(self.each[place - index] for index, place in enumerate(places))
        return tuple(rng.choice(self.each) for _ in range(count))

    def grid(self, count: Any) -> Iterator[tuple[Any, ...]]:
        if self.monotone:
            return itertools.combinations_with_replacement(self.each, count)
        return itertools.product(self.each, repeat=count)


AnyDistribution = Choice | Uniform | LogUniform | Int | Boundaries | Each
KINDS: dict[str, type[AnyDistribution]] = {
    "choice": Choice,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int": Int,
    "boundaries": Boundaries,
    "each": Each,
}

COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|<|>)\s*([\w.]+)\s*")


class Condition(StrictConfig):
    """`left < right` between two fields, or a field and a number."""

    left: str
    comparison: Literal["<", "<=", ">", ">=", "=="]
    right: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, raw: Any) -> Any:
        if not isinstance(raw, str):
            return raw
        match = CONDITION.fullmatch(raw)
        if match is None:
            raise ValueError(f"{raw!r} is not of the form field < field (or <=, >, >=, ==)")
        return dict(zip(("left", "comparison", "right"), match.groups(), strict=True))

    def holds(self, raw: Mapping[str, Any]) -> bool:
        """Whether a run description (nested mappings) satisfies it."""
        left, right = (_value(raw, side) for side in (self.left, self.right))
        return bool(COMPARISONS[self.comparison](left, right))

    def __str__(self) -> str:
        return f"{self.left} {self.comparison} {self.right}"


def _value(raw: Any, side: str) -> Any:
    try:
        return float(side)
    except ValueError:
        pass
    for key in side.split("."):
        raw = raw[int(key)] if isinstance(raw, list | tuple) else raw[key]
    return raw


def _check_range(kind: str, lo: float, hi: float) -> None:
    if not lo < hi:
        raise ValueError(f"{kind} is [{lo:g}, {hi:g}]; the first must be below the second")


def shown(values: Values, path: str) -> str:
    """A value, or those of all elements for a path with `*`."""
    if "*" not in path:
        return str(values[path])
    before, _, after = path.partition("*")
    found = [value for key, value in values.items() if key.startswith(before) and key.endswith(after)]
    return "  ".join(str(value).replace("'", "") for value in found)

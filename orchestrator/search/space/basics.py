"""What may vary in a study, and how a point of it is drawn. Pure; knows no search algorithm.

space:
  training.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
  strategy.cuts: {boundaries: {num_experts: 4, law: [free, equal_log_snr], step: 50}}
  strategy.experts.*.model.attention_share: {split_ratios: {at_most: 3/4, monotone: true}}
conditions: [strategy.cuts.0 >= 100]

A distribution asks a Source for every number it needs, each under a name of its own, so whatever can suggest named
numbers can search any space. Those that look at the run description are in laws.py.
"""

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from workloads.config.base import StrictConfig, merge
from workloads.config.diffusion import DiffusionConfig
from workloads.config.load import validate
from workloads.errors import ConfigError

Values = dict[str, Any]
"""Dotted path to a JSON value: one point of a space."""

MAX_TRIES = 10_000
"""Draws in a row without a new configuration before the space counts as exhausted."""


class Source(Protocol):
    """Where the numbers of a point come from: chance, or a search algorithm that knows each by its name."""

    def category(self, name: str, options: Sequence[Any]) -> Any:
        """One of the options, which have no order."""

    def real(self, name: str, lo: float, hi: float, *, log: bool) -> float:
        """A number between two; log: on a logarithmic scale."""

    def whole(self, name: str, lo: int, hi: int) -> int:
        """A whole number between two, both included."""

    def combination(self, name: str, num_places: int, num_chosen: int) -> list[int]:
        """Distinct numbers below num_places, rising; further names, if needed, are name.0, name.1, ..."""


class RandomSource:
    """Independent draws; every option, number and combination equally likely."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def category(self, name: str, options: Sequence[Any]) -> Any:  # noqa: ARG002
        return self._rng.choice(options)

    def real(self, name: str, lo: float, hi: float, *, log: bool) -> float:  # noqa: ARG002
        drawn = math.exp(self._rng.uniform(math.log(lo), math.log(hi))) if log else self._rng.uniform(lo, hi)
        return min(hi, max(lo, drawn))  # rounding may leave the range

    def whole(self, name: str, lo: int, hi: int) -> int:  # noqa: ARG002
        return self._rng.randint(lo, hi)

    def combination(self, name: str, num_places: int, num_chosen: int) -> list[int]:  # noqa: ARG002
        return sorted(self._rng.sample(range(num_places), num_chosen))


@dataclass(frozen=True)
class Context:
    """What a distribution may know: the run description so far, which is the base with the values drawn before."""

    raw: Mapping[str, Any]

    @property
    def diffusion(self) -> DiffusionConfig:
        """Timesteps and schedule."""
        try:
            return validate(DiffusionConfig, self.raw.get("diffusion", {}))
        except ConfigError as error:
            raise ConfigError(f"diffusion: {error}") from None

    def model(self, section: str) -> Any:
        """The mapping at `model`, or at `strategy.experts.N.model` completed from it."""
        model = self.raw.get("model")
        if section == "model":
            return model
        expert = self.raw["strategy"]["experts"][int(section.split(".")[2])]
        return merge(model, expert.get("model", {})) if isinstance(expert, dict) else None

    def spread(self, path: str) -> list[str]:
        """A path with `*` becomes one per element of the list it stands for. ConfigError if there is none."""
        before, star, after = path.partition("*")
        if not star:
            return [path]
        node: Any = self.raw
        for key in before.rstrip(".").split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, list) or not node:
            raise ConfigError(f"space.{path}: the base has no list at {before.rstrip('.')}")
        return [f"{before}{index}{after}" for index in range(len(node))]


def _check_json(options: tuple[Any, ...]) -> tuple[Any, ...]:
    for option in options:
        try:
            json.dumps(option)
        except TypeError:
            raise ValueError(f"{option!r} is neither number, text, list nor mapping; put a text in quotes") from None
    return options


Options = Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(_check_json)]


class Choice(StrictConfig):
    """One of several values, equally likely."""

    choice: Options

    def draw(self, source: Source, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.category(path, self.choice)}

    def grid(self, path: str, context: Context) -> Iterable[Values]:  # noqa: ARG002
        return ({path: option} for option in self.choice)


class Uniform(StrictConfig):
    """A real number between two."""

    uniform: tuple[FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _check(self) -> "Uniform":
        _check_range("uniform", *self.uniform)
        return self

    def draw(self, source: Source, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.real(path, *self.uniform, log=False)}

    def grid(self, path: str, context: Context) -> None:  # noqa: ARG002
        return None


class LogUniform(StrictConfig):
    """A real number between two, its logarithm uniform."""

    log_uniform: tuple[Annotated[FiniteFloat, Field(gt=0)], Annotated[FiniteFloat, Field(gt=0)]]

    @model_validator(mode="after")
    def _check(self) -> "LogUniform":
        _check_range("log_uniform", *self.log_uniform)
        return self

    def draw(self, source: Source, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.real(path, *self.log_uniform, log=True)}

    def grid(self, path: str, context: Context) -> None:  # noqa: ARG002
        return None


class Int(StrictConfig):
    """A whole number between two, both included."""

    int: tuple[int, int]

    @model_validator(mode="after")
    def _check(self) -> "Int":
        _check_range("int", *self.int)
        return self

    def draw(self, source: Source, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.whole(path, *self.int)}

    def grid(self, path: str, context: Context) -> Iterable[Values]:  # noqa: ARG002
        lo, hi = self.int
        return ({path: number} for number in range(lo, hi + 1))


def _check_range(kind: str, lo: float, hi: float) -> None:
    if not lo < hi:
        raise ValueError(f"{kind} is [{lo:g}, {hi:g}]; the first must be below the second")


def shown(values: Values, path: str, *, digits: int = 4) -> str:
    """A value, or those of all elements for a path with `*`; drawn numbers to so many significant digits."""
    if "*" not in path:
        return _text(values[path], digits)
    before, _, after = path.partition("*")
    found = [value for key, value in values.items() if key.startswith(before) and key.endswith(after)]
    return "  ".join(_text(value, digits) for value in found)


def _text(value: Any, digits: int) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item, digits) for item in value)}]"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value).replace("'", "")


def flat_numbers(values: Values) -> dict[str, float | str]:
    """Every value by itself: elements as path.0, path.1, ..., numbers and fractions like 3/8 as floats."""
    flat: dict[str, float | str] = {}
    for path, value in values.items():
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            flat |= flat_numbers({f"{path}.{key}": item for key, item in items})
        else:
            number = None if isinstance(value, bool) else as_number(value)
            flat[path] = str(value) if number is None else number
    return flat


def as_number(value: Any) -> float | None:
    """A number, or a text that is one ("3/8", "1e-3"), as a float; None for anything else."""
    try:
        return float(Fraction(value))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def short_path(path: str) -> str:
    """The last word of a path, which says enough in a table."""
    return path.rpartition(".")[2]

"""Distributions of a single field: choice, uniform, log_uniform, int. Pure."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from orchestrator.search.space.context import Context
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import NumberSource
from workloads.config.base import Real, StrictConfig, Whole


def _check_json(options: tuple[Any, ...]) -> tuple[Any, ...]:
    for option in options:
        try:
            # Ledger, MLflow and Optuna keep values as JSON.
            json.dumps(option)
        except TypeError:
            raise ValueError(f"{option!r} is neither number, text, list nor mapping; put a text in quotes") from None
    return options


Options = Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(_check_json)]


class Choice(StrictConfig):
    """One of several values, equally likely."""

    choice: Options

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.category(path, self.choice)}

    def grid(self, path: str, context: Context) -> Iterable[Values]:  # noqa: ARG002
        return ({path: option} for option in self.choice)


class Uniform(StrictConfig):
    """A real number between two."""

    uniform: tuple[Real, Real]

    @model_validator(mode="after")
    def _check(self) -> "Uniform":
        _check_range("uniform", *self.uniform)
        return self

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.real(path, *self.uniform, log=False)}

    def grid(self, path: str, context: Context) -> None:  # noqa: ARG002
        return None


class LogUniform(StrictConfig):
    """A real number between two, its logarithm uniform."""

    log_uniform: tuple[Annotated[Real, Field(gt=0)], Annotated[Real, Field(gt=0)]]

    @model_validator(mode="after")
    def _check(self) -> "LogUniform":
        _check_range("log_uniform", *self.log_uniform)
        return self

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.real(path, *self.log_uniform, log=True)}

    def grid(self, path: str, context: Context) -> None:  # noqa: ARG002
        return None


class Int(StrictConfig):
    """A whole number between two, both included."""

    int: tuple[Whole, Whole]

    @model_validator(mode="after")
    def _check(self) -> "Int":
        _check_range("int", *self.int)
        return self

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:  # noqa: ARG002
        return {path: source.whole(path, *self.int)}

    def grid(self, path: str, context: Context) -> Iterable[Values]:  # noqa: ARG002
        lo, hi = self.int
        return ({path: number} for number in range(lo, hi + 1))


def _check_range(kind: str, lo: float, hi: float) -> None:
    if not lo < hi:
        raise ValueError(f"{kind} is [{lo:g}, {hi:g}]; the first must be below the second")

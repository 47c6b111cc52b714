"""Where the numbers of a point come from: chance here, a model of what paid so far in samplers.py."""

import math
import random
from collections.abc import Sequence
from typing import Any, Protocol

MAX_TRIES = 10_000
"""Draws in a row without a new configuration before the space counts as exhausted."""


class NumberSource(Protocol):
    """Gives each number a distribution asks for under a name of its own, so whatever suggests named numbers will do."""

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

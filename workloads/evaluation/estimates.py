"""Measured values with their errors: intervals, ties, means over seeds. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.96
"""Half-width of a normal 95 % interval in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A measured value and its standard error, None if that was not measured."""

    value: float
    stderr: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Normal 95 % interval."""
        half = Z_95 * (self.stderr or 0.0)
        return self.value - half, self.value + half

    def spread(self, sign: str = "+-") -> str:
        """Half of that interval, as it stands behind the value; empty if it is not known."""
        return "" if self.stderr is None else f" {sign} {Z_95 * self.stderr:.2g}"


def tied(a: Estimate, b: Estimate) -> bool:
    """Whether the difference lies inside its 95 % interval, the errors taken as independent."""
    return abs(a.value - b.value) <= Z_95 * math.hypot(a.stderr or 0.0, b.stderr or 0.0)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over seeds; its variance is what each seed's own error leaves, plus that of the spread between seeds."""
    if len(estimates) == 1:
        return estimates[0]
    number = len(estimates)
    # The spread has each seed's own error in it already; counting it twice errs towards a tie.
    own = statistics.fmean((estimate.stderr or 0.0) ** 2 for estimate in estimates)
    between = statistics.variance(estimate.value for estimate in estimates)
    mean = statistics.fmean(estimate.value for estimate in estimates)
    return Estimate(mean, math.sqrt((own + between) / number))

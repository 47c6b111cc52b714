"""Timestep intervals: who owns which part of the denoising process.

t = 0 is the least noisy timestep and interval 0 the one nearest the clean image (MEME, arXiv:2306.04990,
counts the same way from n = 1). Intervals are half-open, and their number need not divide T.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Interval(NamedTuple):
    """Timesteps lo <= t < hi."""

    lo: int
    hi: int

    def __contains__(self, timestep: object) -> bool:
        return isinstance(timestep, int) and self.lo <= timestep < self.hi

    @property
    def num_timesteps(self) -> int:
        return self.hi - self.lo

    def __str__(self) -> str:
        return f"[{self.lo}, {self.hi})"


def uniform_cuts(num_experts: int, num_timesteps: int) -> tuple[int, ...]:
    """Interior cuts of N intervals as equal as integers allow: sizes differ by at most one timestep."""
    return tuple(i * num_timesteps // num_experts for i in range(1, num_experts))


def check_cuts(cuts: Sequence[int], num_timesteps: int) -> None:
    """Raise ValueError unless the cuts rise strictly inside (0, num_timesteps)."""
    for cut in cuts:
        if not 0 < cut < num_timesteps:
            raise ValueError(f"cuts must lie strictly inside (0, {num_timesteps}); found {cut}")
    for left, right in pairwise(cuts):
        if left >= right:
            raise ValueError(f"cuts must rise strictly inside (0, {num_timesteps}); found {left} followed by {right}")


class IntervalTable(Sequence[Interval]):
    """A partition of [0, T) into N intervals; maps a timestep to the expert that owns it."""

    def __init__(self, cuts: Sequence[int], num_timesteps: int) -> None:
        check_cuts(cuts, num_timesteps)
        self.cuts = tuple(cuts)
        self.num_timesteps = num_timesteps
        edges = (0, *cuts, num_timesteps)
        self._intervals = tuple(Interval(lo, hi) for lo, hi in pairwise(edges))

    def expert_of(self, timestep: float) -> int:
        """Index of the interval that holds the timestep, whole or not; ValueError outside [0, T)."""
        if not 0 <= timestep < self.num_timesteps:
            raise ValueError(f"timestep {timestep} is outside [0, {self.num_timesteps})")
        return bisect_right(self.cuts, timestep)

    def __len__(self) -> int:
        return len(self._intervals)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return self._intervals[index]

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._intervals)

"""Loss over the timestep axis as plain numbers: what planning reads, without torch."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from workloads.config.intervals import Interval, IntervalTable
from workloads.errors import DamagedFileError
from workloads.places import JobDir
from workloads.sealed import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossCurve:
    """A network's mean loss in each bin of [0, T)."""

    edges: tuple[int, ...]
    """Rising from 0 to T, one more than there are bins."""

    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise ValueError unless the edges rise and there is one loss between any two."""
        if len(self.edges) != len(self.losses) + 1 or any(left >= right for left, right in pairwise(self.edges)):
            raise ValueError(f"edges {list(self.edges)} do not rise around {len(self.losses)} losses")

    def mean(self, interval: Interval) -> float:
        """Mean over the timesteps of an interval, the loss being constant inside a bin; ValueError outside [0, T)."""
        if not self.edges[0] <= interval.lo < interval.hi <= self.edges[-1]:
            raise ValueError(f"interval {interval} is not a part of {Interval(self.edges[0], self.edges[-1])}")
        total = 0.0
        for (lo, hi), loss in zip(pairwise(self.edges), self.losses, strict=True):
            shared = min(hi, interval.hi) - max(lo, interval.lo)
            if shared > 0:
                total += shared * loss
        return total / interval.num_timesteps

    def to_json(self) -> dict[str, Any]:
        """Plain data that from_json takes; floats keep every bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "LossCurve":
        """Raises ValueError, TypeError or KeyError if it is no curve."""
        return cls(tuple(int(edge) for edge in raw["edges"]), tuple(float(loss) for loss in raw["losses"]))


def ensemble_loss(curves: Sequence[LossCurve], intervals: IntervalTable) -> float:
    """Mean over all timesteps of the loss of the network that owns each: sum_i |I_i| / T * curve_i.mean(I_i).

    One curve per interval, nearest the clean image first; a remix has the same curve for all.
    """
    parts = zip(curves, intervals, strict=True)
    return (
        math.fsum(interval.num_timesteps * curve.mean(interval) for curve, interval in parts) / intervals.num_timesteps
    )


def read_curve(file: Path) -> LossCurve | None:
    """None if there is no such file, or it is damaged, which is told."""
    if not file.exists():
        return None
    try:
        return read_json(file, LossCurve.from_json, "it is left out, or measured again where it is needed")
    except DamagedFileError as error:
        logger.warning("%s", error)
        return None


def newest_curve(work_dir: Path) -> LossCurve | None:
    """The last curve measured of the trained job in work_dir, None if there is none."""
    files = sorted(JobDir(work_dir).curves.glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return next((curve for file in files if (curve := read_curve(file)) is not None), None)

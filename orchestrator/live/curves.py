"""Loss over images seen of many experts, read again only where it has grown, and not all at once."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from workloads.training.records import read_records

MAX_POINTS, FEWEST_POINTS = 120, 12
MAX_POINTS_TOGETHER = 6_000
"""Of all curves of a run: with a thousand experts an answer stays below a megabyte."""

MAX_BYTES_AT_ONCE = 4 << 20
"""Of records that are read for one answer, which takes two seconds or three; the rest comes with the next answers."""

MAX_BYTES = 64 << 20
"""Files of records that are larger have no curve: they would be read again whenever they grow."""

LossPoints = list[tuple[int, float]]
"""Images seen and loss, with the newest."""


class _Known(NamedTuple):
    changed: tuple[int, int]
    """When the file was written last, and its size then."""

    curve: LossPoints
    turn: int


class Curves:
    """What is known of the files of records. May be asked by several threads."""

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}
        self._lock, self._turn = threading.Lock(), 0

    def of(self, files: Sequence[Path]) -> list[LossPoints]:
        """Each thinned out evenly; empty where no record is seen from here, or none has been read yet."""
        num_points = max(FEWEST_POINTS, min(MAX_POINTS, MAX_POINTS_TOGETHER // max(1, len(files))))
        with self._lock:
            self._turn += 1
            self._read(files, num_points)
            return [self._known[file].curve if file in self._known else [] for file in files]

    def _read(self, files: Sequence[Path], num_points: int) -> None:
        found = {file: changed for file in files if (changed := _changed(file)) is not None}
        stale = [file for file in found if file not in self._known or self._known[file].changed != found[file]]
        # Whoever has waited longest comes first.
        stale.sort(key=lambda file: self._known[file].turn if file in self._known else 0)
        num_bytes = 0
        for file in stale:
            num_bytes += found[file][1]
            if num_bytes > MAX_BYTES_AT_ONCE and file is not stale[0]:
                return
            self._known[file] = _Known(found[file], _thinned(file, num_points), self._turn)


def _changed(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size) if stat.st_size <= MAX_BYTES else None


def _thinned(file: Path, num_points: int) -> LossPoints:
    # JSON has no word for what is not finite.
    records = [record for record in read_records(file) if math.isfinite(record.loss)]
    step = max(1, -(-len(records) // num_points))
    return [(record.images_seen, record.loss) for record in records[::-1][::step]][::-1]

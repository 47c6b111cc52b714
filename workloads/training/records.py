"""What training reports while it runs."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from workloads.files import write_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecord:
    """Averages since the previous record."""

    images_seen: int
    loss: float
    images_per_s: float
    learning_rate: float
    loader_wait_share: float
    """Share of the time spent waiting for data."""

    written_s: float = 0.0
    """Unix time; 0 in records of earlier versions."""


_RECORD = TypeAdapter(TrainingRecord)


def read_records(path: Path) -> list[TrainingRecord]:
    """The records of a .jsonl file; a last line cut short by a crash is left out; a damaged one too, with a warning.

    They are for people to look at: nothing that is trained depends on them.
    """
    if not path.exists():
        return []
    records, damaged = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                records.append(_RECORD.validate_json(line))
            except ValidationError:
                damaged += 1
    if damaged:
        _warn(path, damaged)
    return records


@cache
def _warn(path: Path, damaged: int) -> None:
    """Once, for a file that grows is read again and again."""
    _log.warning("%s has %d damaged lines, which are left out of the curves", path, damaged)


def write_records(path: Path, records: Iterable[TrainingRecord]) -> None:
    """Replace the file."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def append_record(path: Path, record: TrainingRecord) -> None:
    """Add one line."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")

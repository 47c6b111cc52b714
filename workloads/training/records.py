"""What training reports while it runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from workloads.sealed import append_line, read_lines, write_lines


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
    """The records of a .jsonl file; what a crash has cut short or what is damaged is left out.

    They are for people to look at: nothing that is trained depends on them.
    """
    return read_lines(path, _RECORD.validate_python)


def write_records(path: Path, records: Iterable[TrainingRecord]) -> None:
    """Replace the file in one step. StorageError when the disk is full."""
    write_lines(path, map(asdict, records))


def append_record(path: Path, record: TrainingRecord) -> None:
    """Add one line. StorageError when the disk is full."""
    append_line(path, asdict(record))

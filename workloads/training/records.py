"""What training reports while it runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


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


def read_records(path: Path) -> list[TrainingRecord]:
    """The records of a .jsonl file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [TrainingRecord(**json.loads(line)) for line in lines if line.endswith("\n")]


def write_records(path: Path, records: Iterable[TrainingRecord]) -> None:
    """Replace the file."""
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))


def append_record(path: Path, record: TrainingRecord) -> None:
    """Add one line."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")

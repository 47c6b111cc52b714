"""Every writer on a disk that is really full: one sentence with the file, and what was there is whole."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.plan.places import RunsDir
from orchestrator.search.running.csv_file import write_csv
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial
from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.config import ProtocolConfig
from workloads.config.load import validate
from workloads.errors import StorageError
from workloads.evaluation.draw import Samples
from workloads.evaluation.samples import SampleStore
from workloads.files import new_directory
from workloads.places import JobDir
from workloads.sealed import append_line, read_lines, write_json, write_lines
from workloads.training.records import TrainingRecord, append_record, read_records, write_records

RECORD = TrainingRecord(1, 0.5, 1.0, 0.1, 0.0)
IMAGES = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)


@pytest.fixture
def full(mounted: Callable[[str], Path]) -> Path:
    """A disk of 128 KiB, with a file of each kind that was written while there was room."""
    disk = mounted("128k")
    for number, write in enumerate(WRITERS):
        (disk / str(number)).mkdir()
        if write not in LARGE:
            write(disk / str(number))
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    return disk


def write_records_anew(folder: Path) -> None:
    write_records(folder / "records.jsonl", [RECORD] * 20)


def add_record(folder: Path) -> None:
    for _ in range(20):
        append_record(folder / "records.jsonl", RECORD)


def add_coefficients(folder: Path) -> None:
    for _ in range(20):
        append_line(folder / "coefficients.jsonl", {"images_seen": 1, "coefficients": [[0.5] * 4] * 4})


def write_lines_anew(folder: Path) -> None:
    write_lines(folder / "coefficients.jsonl", [{"images_seen": 1, "coefficients": [[0.5] * 4] * 4}] * 20)


def write_result(folder: Path) -> None:
    write_json(JobDir(folder).result, {"loss": [0.5] * 500})


def write_checkpoint(folder: Path) -> None:
    CheckpointFolder(folder / "checkpoints", "k").save(Checkpoint(1, {"w": torch.zeros(500)}))


def write_samples(folder: Path) -> None:
    SampleStore(folder).write(0, np.zeros((4, 1, 32, 32), np.uint8))


def write_trial(folder: Path) -> None:
    Ledger(RunsDir(folder), "s").write(Trial(number=0, values={}, error="e" * 4000))


def write_description(folder: Path) -> None:
    Ledger(RunsDir(folder), "s").begin({"name": "s" * 4000})


def write_table(folder: Path) -> None:
    space: dict[str, Any] = {"training.learning_rate": {"choice": [0.1, 0.2]}}
    study = validate(Study, {"name": "s", "base": "demo-meme", "space": space, "sampler": "grid"})
    trial = Trial(number=0, values={"training.learning_rate": 0.1}, error="e" * 4000)
    write_csv(folder / "s.csv", study, [trial])


def draw_grid(folder: Path) -> None:
    protocol = validate(ProtocolConfig, "demo")
    images_NCHW = torch.randint(256, (64, 1, 32, 32), dtype=torch.uint8).numpy()
    Samples(images_NCHW, protocol).write_grid(folder / "grid.png")


def copy_folder(folder: Path) -> None:
    source = folder.parents[1] / "source"
    (source / "vae").mkdir(parents=True, exist_ok=True)
    (source / "vae" / "weights").write_bytes(b"x" * 200_000)
    with new_directory(folder / "ensemble") as scratch:
        shutil.copytree(source, scratch / "vae")


LARGE = (draw_grid, copy_folder)  # in an order: workers of xdist must collect the same
WRITERS: list[Callable[[Path], None]] = [
    write_records_anew,
    add_record,
    add_coefficients,
    write_lines_anew,
    write_result,
    write_checkpoint,
    write_samples,
    write_trial,
    write_description,
    write_table,
    *LARGE,
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_named_and_nothing_is_lost(write: Callable[[Path], None], full: Path) -> None:
    folder = full / str(WRITERS.index(write))
    before = contents(folder)
    with pytest.raises(StorageError, match=rf"no space left to write {folder}/.*; free some"):
        write(folder)
    after = contents(folder)
    for name, content in before.items():
        assert after[name].startswith(content)
    assert after.keys() <= {*before, "grid.png"}  # which is drawn where its user wants it, and no part of a run
    (full / "filler").unlink()
    if write not in LARGE:
        write(folder)


def test_a_line_that_did_not_fit_is_left_out_and_written_over(full: Path) -> None:
    folder = full / str(WRITERS.index(add_record))
    with pytest.raises(StorageError):
        add_record(folder)
    (full / "filler").unlink()
    kept = read_records(folder / "records.jsonl")
    assert set(kept) == {RECORD}
    write_records(folder / "records.jsonl", kept)  # as whoever goes on from a checkpoint does
    append_record(folder / "records.jsonl", RECORD)
    assert read_records(folder / "records.jsonl") == [*kept, RECORD]
    assert read_lines(folder / "nothing", dict) == []

"""What training reported is read back, whatever happened to the file."""

import logging
import os
from pathlib import Path

import pytest

from workloads.training.coefficients import CoefficientHistory, read_coefficients
from workloads.training.records import TrainingRecord, append_record, read_records, write_records

RECORDS = [TrainingRecord(64 * i, 1 / 3**i, 9.5, 1e-3, 0.25, written_s=1e9 + i / 7) for i in range(1, 5)]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for record in RECORDS:
        append_record(tmp_path / "records.jsonl", record)
    assert read_records(tmp_path / "records.jsonl") == RECORDS


def test_those_of_earlier_versions_have_no_time(tmp_path: Path) -> None:
    line = '{"images_seen": 64, "loss": 0.5, "images_per_s": 9.5, "learning_rate": 0.001, "loader_wait_share": 0.25}'
    (tmp_path / "old.jsonl").write_text(line + "\n")
    assert read_records(tmp_path / "old.jsonl") == [TrainingRecord(64, 0.5, 9.5, 1e-3, 0.25)]


def test_a_damaged_line_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "records.jsonl"
    for record in RECORDS:
        append_record(file, record)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"loss", b"lo\xf3s", 1)
    lines[2] = lines[2].replace(b"{", b"[", 1)
    file.write_bytes(b"".join(lines) + lines[0][:-9])
    with caplog.at_level(logging.WARNING):
        assert read_records(file) == [RECORDS[0], RECORDS[3]]
        read_records(file)
    assert [record.getMessage() for record in caplog.records] == [f"{file} has 2 damaged lines, which are left out"]


def test_a_file_that_is_cut_back_is_never_empty_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it goes on from a checkpoint must not lose the curve up to there."""
    curve, coefficients = tmp_path / "records.jsonl", tmp_path / "coefficients.jsonl"
    for record in RECORDS:
        append_record(curve, record)
    coefficients.write_text('{"images_seen": 64, "coefficients": [[1.0]]}\n')

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_records(curve, RECORDS[:2])
    with pytest.raises(KeyboardInterrupt):
        CoefficientHistory(coefficients, start_images=64, every_images=64)
    assert read_records(curve) == RECORDS
    assert len(read_coefficients(coefficients)) == 1

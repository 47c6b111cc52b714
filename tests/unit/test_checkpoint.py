"""Checkpoints: whole or absent, two kept, damage detected, another job's refused."""

import logging
from pathlib import Path

import pytest
import torch

from workloads.checkpoint import Checkpoint, CheckpointFolder


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value), "b": torch.tensor([int(value)])}


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "checkpoints", key="job")
    for images in (100, 200, 300):
        folder.save(Checkpoint(images, tensors(images)))
    return folder


def test_the_newest_comes_back_and_two_are_kept(folder: CheckpointFolder) -> None:
    loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.images_seen == 300
    assert torch.equal(loaded.tensors["a"], torch.full((3,), 300.0))
    assert sorted(path.name for path in folder.path.iterdir()) == ["000000000200", "000000000300"]


def test_a_damaged_one_is_named_and_the_one_before_is_used(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder.path / "000000000300" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one flipped bit in a weight still loads: only the checksum can tell
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.images_seen == 200
    assert "000000000300" in caplog.text


def test_a_truncated_manifest_is_skipped(folder: CheckpointFolder) -> None:
    (folder.path / "000000000300" / "manifest.json").write_text('{"images_')
    loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.images_seen == 200


def test_another_jobs_checkpoint_is_not_loaded(folder: CheckpointFolder) -> None:
    assert CheckpointFolder(folder.path, key="other").load_latest() is None


def test_a_half_written_one_is_not_seen(folder: CheckpointFolder) -> None:
    (folder.path / ".000000000400.1.partial").mkdir()
    loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.images_seen == 300


def test_clear_leaves_nothing(folder: CheckpointFolder) -> None:
    (folder.path / ".000000000400.1.partial").mkdir()
    folder.clear()
    assert folder.load_latest() is None
    assert not folder.path.exists()

"""Files that are whole or absent, on a disk that is really full."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from workloads.errors import StorageError
from workloads.files import new_directory, sha256_file, write_text


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def fail_inside(target: Path) -> None:
    with new_directory(target) as scratch:
        (scratch / "file").write_text("half")
        raise RuntimeError("stop")


def test_a_directory_whose_writing_failed_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_directory(target) as scratch:
        (scratch / "file").write_text("whole")
    with pytest.raises(RuntimeError, match="stop"):
        fail_inside(target)
    assert (target / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tiny_disk: Path) -> None:
    write_text(tiny_disk / "result.json", "kept")
    with pytest.raises(StorageError, match=r"no space left to write .*result\.json"):
        write_text(tiny_disk / "result.json", "x" * 200_000)
    assert (tiny_disk / "result.json").read_text() == "kept"
    assert [path.name for path in tiny_disk.iterdir()] == ["result.json"]


def save_weights(target: Path) -> None:
    with new_directory(target) as scratch:
        safetensors.torch.save_file({"w": torch.zeros(100_000)}, scratch / "w.safetensors")


def test_weights_that_do_not_fit_leave_nothing_behind(tiny_disk: Path) -> None:
    with pytest.raises(StorageError, match="no space left"):
        save_weights(tiny_disk / "expert")
    assert list(tiny_disk.iterdir()) == []

"""Files that are whole or absent, on a disk that is really full."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from orchestrator.plan.places import RunsDir
from orchestrator.terminal.streams import explain
from workloads.errors import ConfigError, StorageError
from workloads.files import new_directory, new_file, remove_unfinished_file, sha256_file, write_text


@pytest.fixture
def tiny_disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of 64 KiB."""
    return mounted("64k")


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


def write_half(target: Path) -> None:
    with new_file(target) as scratch:
        scratch.write_bytes(b"half")
        raise RuntimeError("stop")


def test_a_file_whose_writing_failed_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.bin"
    with new_file(target) as scratch:
        scratch.write_bytes(b"whole")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="stop"):
        write_half(target)
    assert target.read_bytes() == b"whole"
    assert [path.name for path in target.parent.iterdir()] == ["out.bin"]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, synced = tmp_path / "out", []
    monkeypatch.setattr("workloads.files.sync", lambda path: synced.append((path, target.exists())))
    with new_file(target) as scratch:
        scratch.write_text("whole")
    assert synced == [(scratch, False), (tmp_path, True)]


def test_what_a_killed_process_left_of_a_file_is_removed_and_no_other(tmp_path: Path) -> None:
    for name in (".a.1.partial", ".a.partial", ".ab.1.partial", "a"):
        (tmp_path / name).touch()
    remove_unfinished_file(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {".ab.1.partial", "a"}


KILLED = """
import os, signal, sys
from pathlib import Path
from workloads import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as scratch:
    (scratch / "part" if scratch.is_dir() else scratch).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["new_file", "new_directory"])
def test_what_a_killed_process_was_writing_goes_when_another_writes_it(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target[1]"
    assert subprocess.run([sys.executable, "-c", KILLED, kind, target], check=False).returncode == -signal.SIGKILL
    (orphan,) = tmp_path.iterdir()
    write_text(tmp_path / "target", "whole")
    assert orphan.exists()  # it is another's
    with new_file(target) as scratch:
        scratch.write_text("whole")
        lives = scratch.with_name(scratch.name.replace(str(os.getpid()), str(os.getppid())))
        lives.touch()
    elsewhere = tmp_path / f".target[1].another-{os.getpid()}.partial"
    elsewhere.touch()
    write_text(target, "anew")
    assert set(tmp_path.iterdir()) == {target, tmp_path / "target", lives, elsewhere}


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


def test_a_disk_that_may_only_be_read_is_named(tiny_disk: Path) -> None:
    write_text(tiny_disk / "file", "old")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system\); .* --runs-dir"):
        write_text(tiny_disk / "file", "new")
    assert (tiny_disk / "file").read_text() == "old"


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no regular file"):
        write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "file" / "x", "x")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "/etc", "x" * 201])
def test_names_from_outside_stay_in_their_directory(name: str, tmp_path: Path) -> None:
    for place in (RunsDir(tmp_path).study, RunsDir(tmp_path).run_named):
        with pytest.raises(ConfigError, match="is no name of a run or a study"):
            place(name)
    assert RunsDir(tmp_path).study("my-study.2").path == tmp_path / "studies" / "my-study.2"


def test_errors_of_the_system_become_a_sentence() -> None:
    with pytest.raises(OSError, match="too long") as raised:
        Path("x" * 300).stat()
    sentence, code = explain(raised.value)
    assert sentence.endswith("...: File name too long")
    assert code == 2

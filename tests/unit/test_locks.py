"""Locks between processes that are really there, and on a file system that has none."""

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workloads.locks import locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from workloads.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_another_process_waits_or_does_without_until_the_holder_dies(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".lock"
    with held_elsewhere(file) as holder:
        assert try_lock(file) is None
        started_s = time.monotonic()
        assert try_lock(file, timeout_s=0.2) is None
        assert time.monotonic() - started_s >= 0.2
        with pytest.raises(TimeoutError, match="is locked by another process"), locked(file, timeout_s=0.1):
            pytest.fail("two hold the lock")
        with pytest.raises(TimeoutError), locked(file, timeout_s=0.1, if_supported=True):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
        with locked(file, timeout_s=10):
            assert try_lock(file) is None


def test_a_lock_may_be_released_by_another_thread(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / ".lock")
    assert lock is not None
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    again = try_lock(tmp_path / ".lock")
    assert again is not None
    again.release()


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), locked(tmp_path / ".lock"):
        raise RuntimeError("stop")
    lock = try_lock(tmp_path / ".lock")
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_in_the_file_system_everyone_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    with held_elsewhere(tmp_path / ".lock"):
        monkeypatch.setattr("fcntl.flock", refuse)
        with locked(tmp_path / ".lock", if_supported=True):
            pass


def test_a_folder_that_cannot_be_written_is_not_one_without_locks(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError, match="directory"), locked(tmp_path / ".lock", if_supported=True):
        pytest.fail("nothing is locked")

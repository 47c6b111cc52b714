"""One process at a time. The kernel drops the lock of a process that dies, so there is nothing to expire."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Lock:
    """A lock that is held, by whichever thread, until it is released."""

    def __init__(self, held: FileLock) -> None:
        self._held = held

    def release(self) -> None:
        """Let others have it."""
        self._held.release()


def try_lock(file: Path, *, timeout_s: float = 0.0) -> Lock | None:
    """The lock of a file, which is made if it is not there; None while another has it, after timeout_s of waiting."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return None
    return Lock(lock)


def is_locked(file: Path) -> bool | None:
    """Whether a process holds the lock of a file, as far as that shows here; None where it cannot be told.

    For who only looks: makes nothing, and keeps others who look from nothing.
    """
    try:
        with file.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


@contextmanager
def locked(file: Path, *, timeout_s: float | None = None, if_supported: bool = False) -> Iterator[None]:
    """Hold the lock of a file inside the block. TimeoutError after timeout_s of waiting; None: wait for ever.

    if_supported: where the file system has no locks, go on without.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if if_supported and not _has_locks(file):
        yield
        return
    lock = try_lock(file, timeout_s=-1 if timeout_s is None else timeout_s)
    if lock is None:
        raise TimeoutError(f"{file} is locked by another process")
    try:
        yield
    finally:
        lock.release()


def _has_locks(file: Path) -> bool:
    with file.open("a+") as opened:  # for reading too, without which NFS refuses
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # another has it
            return True
        except OSError:
            return False
    return True

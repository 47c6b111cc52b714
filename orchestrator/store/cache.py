"""Folders of a remote store on a node's own disk: fetched once for all its processes, the least used removed first."""

import fcntl
import os
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import IO

from orchestrator.store.remote import RemoteStore
from workloads.errors import StorageError
from workloads.files import clear_storage_errors
from workloads.locks import locked

NUM_HELD = 4
"""Folders that a process may have in use at once: data, reference, ensemble."""

_held: deque[IO[str]] = deque(maxlen=NUM_HELD)
"""Open lock files of what this process has used last; the kernel drops their locks with them."""


def node_root() -> Path:
    """This node's own directory: $REMEME_CACHE_DIR, or one of this user in the directory for temporary files."""
    root = Path(os.environ.get("REMEME_CACHE_DIR") or Path(tempfile.gettempdir()) / f"rememe-{os.getuid()}")
    with clear_storage_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to another user; set REMEME_CACHE_DIR to a directory of yours")
    return root


class NodeCache:
    """A directory of folders named by the hash of their content, no more than max_bytes in all."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root, self._max_bytes = root, max_bytes

    def fetch(self, remote: RemoteStore, name: str) -> Path:
        """The folder here; it stays at least as long as this process uses no more than NUM_HELD others.

        StorageError if it is not at the remote, is damaged, or does not fit.
        """
        index = remote.index(name)
        if index is None:
            raise StorageError(f"{remote.uri}/{name} is not there; run the same command again to have it made")
        folder = self._root / index.digest[:32]
        # One process fetches for all, and nothing is removed meanwhile.
        with locked(self._root / "lock"):
            lock = _lock_file(folder).open("w")
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held.append(lock)
            # What was cut short is fetched again.
            if not folder.is_dir() or _num_bytes(folder) != index.num_bytes:
                self._make_room(index.num_bytes, f"{remote.uri}/{name}")
                remote.fetch(name, folder)
            os.utime(_lock_file(folder))
        return folder

    def _make_room(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._max_bytes:
            raise StorageError(
                f"{what} has {num_bytes / 1e9:.3g} GB, more than execution.cache_size_gb ({self._max_bytes / 1e9:g}) "
                "allows; raise it"
            )
        known = {path: _num_bytes(path) for path in self._root.iterdir() if path.is_dir()}
        excess = sum(known.values()) + num_bytes - self._max_bytes
        for folder in sorted(known, key=_last_use_s):
            if excess > 0 and _remove_unused(folder):
                excess -= known[folder]
        if excess > 0:
            raise StorageError(
                f"{what} does not fit beside what is in use on this node within execution.cache_size_gb "
                f"({self._max_bytes / 1e9:g}); raise it"
            )


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _last_use_s(folder: Path) -> float:
    lock = _lock_file(folder)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _remove_unused(folder: Path) -> bool:
    with _lock_file(folder).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
        _lock_file(folder).unlink()
    return True


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

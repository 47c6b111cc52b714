"""Files that are whole or absent: write beside the target, flush to disk, rename."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from workloads.errors import StorageError


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def clear_storage_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into StorageError with the path and the next step."""
    try:
        yield
    except SafetensorError as error:
        # The library reports a full disk in words only.
        if "os error 28" in str(error) or "No space" in str(error):
            raise StorageError(f"no space left to write {target}; free some and run the same command again") from error
        raise
    except OSError as error:
        # shutil.copytree keeps of what went wrong the words only.
        is_copy_on_full = isinstance(error, shutil.Error) and "[Errno 28]" in str(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT} or is_copy_on_full:
            raise StorageError(f"no space left to write {target}; free some and run the same command again") from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}:
            raise StorageError(
                f"{target} cannot be written ({error.strerror}); choose another place, for runs with --runs-dir"
            ) from error
        raise


SCRATCH = ".*.partial"
"""Pattern of the names of what is being written, or was when its process was killed."""


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends well, and vanishes when it does not.

    Raises StorageError when the disk is full.
    """
    scratch = _scratch_of(target)
    try:
        with clear_storage_errors(target):
            _remove_orphans(target)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            yield scratch
            for file in scratch.rglob("*"):
                sync(file)
            shutil.rmtree(target, ignore_errors=True)
            scratch.replace(target)
            sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The same for a file: the block writes it, and a reader of `target` finds the old one or all of the new one."""
    with clear_storage_errors(target):
        if target.exists() and not target.is_file():
            raise StorageError(f"{target} is no regular file and is not replaced; name another")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(target)
        scratch = _scratch_of(target)
        try:
            yield scratch
            sync(scratch)
            scratch.replace(target)
            sync(target.parent)
        finally:  # inside, for where nothing can be written nothing can be removed either
            scratch.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Replace a text file in one step. Raises StorageError when the disk is full."""
    with new_file(target) as scratch:
        scratch.write_text(text)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes of any machine that were killed inside new_directory left anywhere under a folder.

    Only for who knows that no one else writes directories there.
    """
    for scratch in [path for path in folder.rglob(SCRATCH) if path.is_dir()]:
        _remove(scratch)


def remove_unfinished_file(target: Path) -> None:
    """Remove what processes that were killed inside new_file left of one file; only for who alone writes it."""
    for scratch in target.parent.glob(f".{target.name}.*partial"):
        scratch.unlink(missing_ok=True)


def _scratch_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_machine()}-{os.getpid()}.partial")


def _remove_orphans(target: Path) -> None:
    """Remove what processes of this machine were writing of a target when they were killed."""
    for scratch in target.parent.glob(f".{escape(target.name)}.{_machine()}-*.partial"):
        pid = scratch.name.rpartition("-")[2].removesuffix(".partial")
        if not Path("/proc", pid).exists():
            _remove(scratch)


def _remove(scratch: Path) -> None:
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """A word for where a process has the number it has: this machine, since it was started, in this container.

    A word that no one else has where that cannot be told.
    """
    with suppress(OSError):
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text(), Path("/proc/self/ns/pid").stat().st_ino
        return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:8]
    return uuid.uuid4().hex[:8]


def working_directory() -> Path | None:
    """Where this process stands; None if that is gone, as Ray removes a job's with the last job of the same package."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def sync(path: Path) -> None:
    """Force a file's or directory's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are whole or absent: write beside the target, flush to disk, rename."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageError(f"no space left to write {target}; free some and run the same command again") from error
        if error.errno in {errno.EACCES, errno.EROFS}:
            raise StorageError(f"{target} cannot be written ({error.strerror}); choose another --runs-dir") from error
        raise


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends well, and vanishes when it does not.

    Raises StorageError when the disk is full.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with clear_storage_errors(target):
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


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed inside new_directory left anywhere under a folder.

    Only for who knows that no one else writes there.
    """
    for scratch in [path for path in folder.rglob(".*.partial") if path.is_dir()]:
        shutil.rmtree(scratch)


def write_text(target: Path, text: str) -> None:
    """Replace a text file in one step. Raises StorageError when the disk is full."""
    with clear_storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            scratch.write_text(text)
            sync(scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's or directory's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

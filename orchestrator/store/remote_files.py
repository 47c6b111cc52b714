"""Files at a URI, through fsspec. Whatever a driver raises becomes one sentence here, and only here."""

import errno
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.plan.masking import masked
from workloads.errors import ConfigError, StorageError
from workloads.files import new_file

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
"""Where a file appears in one step and there are no directories: to ask for one may create a bucket."""

EXTRAS = {
    scheme: f"pip install 'rememe[{extra}]'"
    for scheme, extra in (("s3", "s3"), ("s3a", "s3"), ("gs", "gs"), ("gcs", "gs"))
}
"""How what a URI needs is installed, where fsspec's own sentence does not say it."""

S3_OPTIONS = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"max_attempts": 2}}}
"""botocore's own tries take 41 s to see that nobody listens."""
S3_TRIES = 2


class RemoteFiles:
    """Files below one URI, by name (a relative path with slashes).

    Raises ConfigError if fsspec does not know the URI; every method StorageError with the URI, what went wrong and the
    next step.
    """

    def __init__(self, uri: str, option: str = "--store") -> None:
        import fsspec

        self.uri = masked(uri.rstrip("/"))
        self.option = option
        scheme = uri.split("://", maxsplit=1)[0] if "://" in uri else ""
        options: dict[str, Any] = S3_OPTIONS if scheme in {"s3", "s3a"} else {}
        try:
            self._fs, root = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
        except ImportError as error:
            how = EXTRAS.get(scheme, _first_line(error))
            raise ConfigError(f"{option} {self.uri} needs a package that is not installed: {how}") from None
        # Drivers connect here, and raise what they like.
        except Exception as error:
            raise ConfigError(f"{option} {self.uri} cannot be used: {_first_line(error)}") from error
        if options:
            self._fs.retries = S3_TRIES
        self._root = PurePosixPath(root)
        known = self._fs.protocol
        self._is_object_store = not OBJECT_STORES.isdisjoint([known] if isinstance(known, str) else known)

    def check(self) -> None:
        """Raise ConfigError unless files can be written, listed, read and removed here."""
        folder = _probe()
        try:
            self.write(f"{folder}/file", b"rememe")
            listed, found = self.names(folder), self.read(f"{folder}/file")
            self.remove_folder(folder)
        except StorageError as error:
            raise ConfigError(f"{self.option} cannot be used: {error}") from error
        if listed != ["file"] or found != b"rememe":
            raise ConfigError(f"{self.option} {self.uri} does not give back what was written; choose another place")

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        with self._refusals(name, "read"):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError as error:
                if _is_about_bucket(error):
                    raise
                return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a small file in one step."""
        path = self._path(name)
        with self._refusals(name, "written"):
            self._make_parent(path)
            if self._is_object_store:
                self._fs.pipe_file(path, content)
                return
            # A disk shows a file while it is written; a rename is what it does in one step.
            scratch = f"{path}.{uuid.uuid4().hex[:8]}.partial"
            self._fs.pipe_file(scratch, content)
            self._fs.mv(scratch, path)

    @cached_property
    def creates(self) -> bool:
        """Whether of two that make the same file at once, only one is told that it has.

        Tried, for not every store that speaks S3 heeds the condition.
        """
        if not _knows_create(self._fs):
            return False
        name = _probe()
        self.write(name, b"")
        try:
            return not self.create(name, b"")
        except StorageError:  # one that refuses the condition itself
            return False
        finally:
            self.remove(name)

    def create(self, name: str, content: bytes) -> bool:
        """Make a small file; False if there is one already. Only where `creates`."""
        path = self._path(name)
        with self._refusals(name, "written"):
            self._make_parent(path)
            try:
                if self._is_object_store:
                    self._fs.pipe_file(path, content, mode="create")
                else:
                    with self._fs.open(path, "xb") as file:
                        file.write(content)
            except FileExistsError:
                return False
        return True

    def upload(self, source: Path, name: str) -> None:
        """Make a file of any size, which a reader may see before it is whole: nothing may name it yet."""
        path = self._path(name)
        with self._refusals(name, "written"):
            self._make_parent(path)
            self._fs.put_file(str(source), path)

    def download(self, name: str, target: Path) -> None:
        """Bring a file of any size; `target` is replaced when all of it is here."""
        with new_file(target) as scratch, self._refusals(name, "read"):
            self._fs.get_file(self._path(name), str(scratch))

    def sha256(self, name: str) -> str | None:
        """Of a file of any size, read in blocks; None if there is none."""
        with self._refusals(name, "read"):
            try:
                with self._fs.open(self._path(name), "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError as error:
                if _is_about_bucket(error):
                    raise
                return None

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, without the folder's own name; nothing if there is no such folder."""
        path = self._path(folder)
        with self._refusals(folder, "listed"):
            try:
                found = self._fs.ls(path, detail=False)
            except FileNotFoundError as error:
                if _is_about_bucket(error):
                    raise
                return []
        return sorted({PurePosixPath(entry).name for entry in found} - {PurePosixPath(path).name})

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with self._refusals(name, "removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all it holds, if there is one."""
        with self._refusals(name, "removed"), suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return str(self._root / name)

    def _make_parent(self, path: str) -> None:
        if not self._is_object_store:
            self._fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)

    @contextmanager
    def _refusals(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        # botocore's, aiohttp's, Google's and Hadoop's errors have nothing in common but this.
        except Exception as error:
            raise StorageError(f"{self.uri}/{name} cannot be {what} ({_reason(error)}); {_next_step(error)}") from error


def is_absent(error: StorageError) -> bool:
    """Whether all that is wrong is that there is no such file."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) and not _is_about_bucket(cause)


def _probe() -> str:
    return f".probe-{uuid.uuid4().hex[:12]}"


def _knows_create(fs: Any) -> bool:
    if "file" in fs.protocol:
        return True  # O_EXCL
    # The common base class takes the word too, looks whether there is such a file, and then writes it.
    own = getattr(fs, "_pipe_file", None)
    return own is not None and "mode" in signature(own).parameters


def _is_about_bucket(error: BaseException) -> bool:
    return "bucket does not exist" in str(error).lower() or type(error.__cause__).__name__ == "NoSuchBucket"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")


def _first_line(error: BaseException) -> str:
    return masked((str(error).strip().splitlines() or [""])[0])


def _next_step(error: BaseException) -> str:
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some space and run the same command again"
    if _is_about_bucket(error):
        return "check the name of the bucket, or create it: none is created for you"
    if isinstance(error, PermissionError) or "Credential" in kind or "Token" in kind:
        return "check the credentials on every node, and what they allow"
    if isinstance(error, ConnectionError | TimeoutError) or "Connect" in kind or "Timeout" in kind:
        return "check that the address is right and reachable from every node, and run the same command again"
    return "run the same command again when the store is well"

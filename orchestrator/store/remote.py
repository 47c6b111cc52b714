"""Finished experts in an object store or on a shared disk, through fsspec, and leases on those being trained.

URI/KEY/index.json           which attempt counts, with the SHA-256 of each of its files; written last
URI/KEY/attempt-ID/...       result, weights, records of one training; never changed
URI/KEY/lease.json           who trains it now, renewed all the time

No lock is needed to be right: an attempt's files are whole before the index names them, and two trainings of one key
by accident are two attempts of which the later counts. A lease makes the accident rare.
"""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from workloads.errors import ConfigError, StorageError
from workloads.files import new_directory
from workloads.places import JobDir

RENEW_INTERVAL_S = 10.0
"""Several in a row may fail before the lease runs out."""
LEASE_S = 60.0
"""A lease that nobody has renewed for this long (by the clock of the one who looks) is free."""

SETTLE_S = 0.5
"""Between writing a lease and reading it back; the last to write of two has it."""

LEFT_OUT = {JobDir(Path()).checkpoints.name, JobDir(Path()).lock.name}
"""What of a job serves only whoever trains it."""


class RemoteStore:
    """One URI. Raises ConfigError if fsspec does not know it, StorageError if it does not answer."""

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri
        self._seen: dict[str, tuple[str, float]] = {}
        """What each foreign lease said, and when it said so first."""
        try:
            self._fs, root = fsspec.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"--store {uri} cannot be used: {str(error).splitlines()[0]}") from None
        self._root = PurePosixPath(root)

    def fetch(self, key: str, target: Path) -> bool:
        """Bring a finished job into the directory `target`; False if there is none. StorageError if it is damaged."""
        index = self._read(key, "index.json")
        if index is None:
            return False
        with new_directory(target) as scratch:
            for name, digest in index["files"].items():
                content: bytes = self._fs.cat_file(self._path(key, index["attempt"], name))
                if hashlib.sha256(content).hexdigest() != digest:
                    raise StorageError(f"{self.uri}/{key}/{name} is damaged; remove {self.uri}/{key} to train it again")
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(content)
        return True

    def publish(self, key: str, source: Path) -> None:
        """Put a finished job there, unless it is there already. StorageError with the next step if that fails."""
        try:
            # Equal keys mean equal weights, so what is there will do.
            if self._read(key, "index.json") is not None:
                return
            attempt, files = f"attempt-{uuid.uuid4().hex[:12]}", {}
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                name = file.relative_to(source).as_posix()
                if name.split("/")[0] in LEFT_OUT:
                    continue
                content = file.read_bytes()
                self._write(content, key, attempt, name)
                files[name] = hashlib.sha256(content).hexdigest()
            self._write(json.dumps({"attempt": attempt, "files": files}).encode(), key, "index.json")
        except OSError as error:
            raise StorageError(
                f"{self.uri} cannot be written ({error}); the expert is kept in {source}, run the same command again"
            ) from None

    def claim(self, key: str) -> "Lease | None":
        """A lease, renewed by a thread until it is released; None while somebody else renews theirs."""
        known = self._read(key, "lease.json")
        if known is not None and not self._expired(key, json.dumps(known)):
            return None
        lease = Lease(self, key)
        lease.renew()
        time.sleep(SETTLE_S)
        if not lease.is_held():
            return None
        lease.start()
        return lease

    def try_out(self) -> None:
        """Write something small and remove it. StorageError if that fails."""
        name = f"tried-{uuid.uuid4().hex[:12]}"
        try:
            self._write(b"", name)
            self._remove(name)
        except OSError as error:
            raise StorageError(f"{self.uri} cannot be written ({error}); check --store and its permissions") from None

    def _expired(self, key: str, text: str) -> bool:
        now_s = time.monotonic()
        if self._seen.get(key, ("", 0.0))[0] != text:
            self._seen[key] = (text, now_s)
        return now_s - self._seen[key][1] > LEASE_S

    def _path(self, *parts: str) -> str:
        return str(self._root.joinpath(*parts))

    def _read(self, *parts: str) -> dict[str, Any] | None:
        try:
            read: dict[str, Any] = json.loads(self._fs.cat_file(self._path(*parts)))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise StorageError(f"{self.uri} does not answer ({error}); check --store") from None
        return read

    def _write(self, content: bytes, *parts: str) -> None:
        path = self._path(*parts)
        self._fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        # A disk shows a file while it is written, an object store does not; a rename is what both do in one step.
        scratch = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        self._fs.pipe_file(scratch, content)
        self._fs.mv(scratch, path)

    def _remove(self, *parts: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(*parts))


class Lease:
    """A claim on a key at the remote."""

    def __init__(self, store: RemoteStore, key: str) -> None:
        self._store, self._key, self._owner = store, key, uuid.uuid4().hex
        self._count = 0
        self._ended = threading.Event()

    def renew(self) -> None:
        """Write that it is still held; the count is what others watch, for clocks differ."""
        self._count += 1
        self._store._write(json.dumps({"owner": self._owner, "count": self._count}).encode(), self._key, "lease.json")

    def is_held(self) -> bool:
        """Whether the last one to write it was this."""
        found = self._store._read(self._key, "lease.json")
        return found is not None and found["owner"] == self._owner

    def start(self) -> None:
        """Renew until released."""
        # A daemon, for it must not keep a driver from ending; the lease of one that died runs out.
        threading.Thread(target=self._work, name=f"rememe-lease-{self._key}", daemon=True).start()

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        if self.is_held():
            self._store._remove(self._key, "lease.json")

    def _work(self) -> None:
        while not self._ended.wait(RENEW_INTERVAL_S):
            try:
                if self.is_held():
                    self.renew()
            except (OSError, StorageError):
                continue  # the next renewal may get through; if none does, the lease runs out, which is right

"""Folders at a URI that are there whole or not at all, and claims on them: finished experts, checkpoints, data, runs.

URI/NAME/index.json           which attempt counts, with the SHA-256 of each of its files; written last
URI/NAME/attempt-ID/...       the files of one attempt; never changed
URI/NAME/lease-N.json         the N-th claim: whose it is, renewed all the time

No lock is needed to be right: an attempt's files are whole before the index names them, and two trainings of one key
by accident are two attempts of which the first counts. A lease makes the accident rare.
"""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from orchestrator.store.remote_files import RemoteFiles
from workloads.errors import StorageError
from workloads.files import new_directory, sha256_file
from workloads.places import JobDir

INDEX = "index.json"

RENEW_INTERVAL_S = 10.0
"""Several in a row may fail before the lease runs out."""
LEASE_S = 60.0
"""A lease that nobody has renewed for this long (by the clock of the one who looks) is free."""

SETTLE_S = 0.5
"""Between writing a lease and reading it back, where only the last of two to write can be known to have it."""

LEFT_OUT = {JobDir(Path()).checkpoints.name, JobDir(Path()).lock.name}
"""What of a job serves only whoever trains it."""


class DamagedError(StorageError):
    """What lies at the remote is not what was put there."""


class FolderIndex(NamedTuple):
    """What a folder consists of."""

    attempt: str
    """Where its files lie, below it; empty: in the folder itself, each under its own name."""

    files: dict[str, str]
    """SHA-256 by name."""

    num_bytes: int = 0
    """Of all files together."""

    @property
    def digest(self) -> str:
        """Equal for equal content."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


class RemoteStore:
    """One URI. Raises ConfigError if fsspec does not know it, StorageError if it does not answer."""

    def __init__(self, uri: str, option: str = "--store") -> None:
        self.files = RemoteFiles(uri, option)
        self.uri = self.files.uri
        self._seen: dict[str, tuple[bytes, float]] = {}
        """What each foreign lease said, and when it said so first."""

    def index(self, name: str) -> FolderIndex | None:
        """What a folder consists of; None if it is not there. StorageError if the index says what none of ours says."""
        text = self.files.read(f"{name}/{INDEX}")
        if text is None:
            return None
        try:
            raw = json.loads(text)
            found = FolderIndex(raw["attempt"], raw["files"], int(raw.get("num_bytes", 0)))
            # Whoever can write there must not be able to write anywhere else here.
            is_sound = all(map(_is_confined, [found.attempt, *found.files])) and all(
                isinstance(digest, str) for digest in found.files.values()
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            is_sound = False
        if not is_sound:
            raise DamagedError(f"{self.uri}/{name}/{INDEX} is damaged; remove {self.uri}/{name} to have it made again")
        return found

    def fetch(self, name: str, target: Path) -> bool:
        """Bring a folder here as `target`; False if there is none. StorageError if it is damaged."""
        index = self.index(name)
        if index is None:
            return False
        with new_directory(target) as scratch:
            for file in index.files:
                self._bring(name, index, file, scratch / file)
        return True

    def refresh(self, name: str, target: Path, only: str = "*") -> bool:
        """Bring those files of a folder that `target` lacks or has otherwise; False if there is no such folder.

        only: a pattern of their names. What `target` has besides stays. StorageError if a file is damaged.
        """
        if (index := self.index(name)) is None:
            return False
        for file, digest in index.files.items():
            if fnmatchcase(file, only) and not ((target / file).is_file() and sha256_file(target / file) == digest):
                self._bring(name, index, file, target / file)
        return True

    def publish(
        self,
        name: str,
        source: Path,
        left_out: Collection[str] = LEFT_OUT,
        only: Collection[str] | None = None,
    ) -> None:
        """Put a folder there, unless it is there already; left_out names entries of `source` that stay here.

        Of two that do so at once the first counts, where the store heeds conditions; what is there never changes.
        only: the entries that go; None: all.
        """
        # Equal names mean equal content, so what is there will do.
        if self.index(name) is not None:
            return
        stays = left_out if only is None else {entry.name for entry in source.iterdir()} - set(only)
        index = _index_of(source, stays, attempt=f"attempt-{uuid.uuid4().hex[:12]}")
        for file in index.files:
            self.files.upload(source / file, f"{name}/{index.attempt}/{file}")
        if not self.files.creates:
            self._write_index(name, index)
        elif not self.files.create(f"{name}/{INDEX}", _text_of(index)):
            self.files.remove_folder(f"{name}/{index.attempt}")

    def mirror(self, name: str, source: Path, left_out: Collection[str] = ()) -> None:
        """Bring a folder that changes up to date; its files lie there under their own names, for people to look at."""
        known = self.index(name) or FolderIndex("", {})
        index = _index_of(source, left_out, attempt="")
        for file, digest in index.files.items():
            if known.files.get(file) != digest:
                self.files.upload(source / file, f"{name}/{file}")
        if index != known:
            self._write_index(name, index)

    def try_out(self) -> None:
        """Write something small and remove it. StorageError if that fails."""
        name = f"tried-{uuid.uuid4().hex[:12]}"
        self.files.write(name, b"")
        self.files.remove(name)

    def claim(self, name: str) -> "Lease | None":
        """A lease, renewed by a thread until it is released; None while somebody else renews theirs."""
        number, said = self._last_lease(name)
        if said is not None and not self._expired(name, said):
            return None
        lease = Lease(self.files, name, number + 1)
        if not lease.take():
            return None
        lease.start()
        return lease

    def take_over(self, name: str) -> "Lease":
        """A lease, whoever has had it until now; it is not renewed, and lasts until the next takes it."""
        while True:
            lease = Lease(self.files, name, last_lease_number(self.files, name) + 1)
            if lease.take():
                return lease

    def claim_after_death(self, name: str) -> "Lease | None":
        """The same, but of somebody who is not heard of, wait until their lease has run out."""
        _, first = self._last_lease(name)
        while (lease := self.claim(name)) is None:
            _, said = self._last_lease(name)
            if said not in {first, None}:
                return None  # it was renewed
            time.sleep(SETTLE_S)
        return lease

    def _last_lease(self, name: str) -> tuple[int, bytes | None]:
        number = last_lease_number(self.files, name)
        return number, self.files.read(lease_file(name, number)) if number else None

    def _expired(self, name: str, said: bytes) -> bool:
        now_s = time.monotonic()
        if name not in self._seen or self._seen[name][0] != said:
            self._seen[name] = (said, now_s)
        return now_s - self._seen[name][1] > LEASE_S

    def _bring(self, name: str, index: FolderIndex, file: str, target: Path) -> None:
        self.files.download("/".join(filter(None, [name, index.attempt, file])), target)
        if sha256_file(target) != index.files[file]:
            target.unlink()
            raise DamagedError(f"{self.uri}/{name}/{file} is damaged; remove {self.uri}/{name} to have it made again")

    def _write_index(self, name: str, index: FolderIndex) -> None:
        self.files.write(f"{name}/{INDEX}", _text_of(index))


def _text_of(index: FolderIndex) -> bytes:
    return json.dumps(index._asdict()).encode()


class Lease:
    """A claim on a name: the lease with the highest number counts, and only one can make the next."""

    def __init__(self, files: RemoteFiles, name: str, number: int) -> None:
        self._files, self._name, self._number = files, name, number
        self._file, self._owner, self._count = lease_file(name, number), uuid.uuid4().hex, 0
        self._ended = threading.Event()

    def take(self) -> bool:
        """Make the lease; False if another was faster."""
        if self._files.creates:
            # One more look: a later one may have been made, and its predecessors removed, since the last.
            return self._files.create(self._file, self._said()) and self.is_held()
        self._files.write(self._file, self._said())
        time.sleep(SETTLE_S)
        return self.is_held()

    def renew(self) -> None:
        """Write that it is still held; the count is what others watch, for clocks differ."""
        self._count += 1
        self._files.write(self._file, self._said())

    def is_held(self) -> bool:
        """Whether nobody has taken it over."""
        if last_lease_number(self._files, self._name) != self._number:
            return False
        try:
            return bool(json.loads(self._files.read(self._file) or b"{}").get("owner") == self._owner)
        except (ValueError, AttributeError):
            return False

    def start(self) -> None:
        """Renew until released."""
        # A daemon, for it must not keep a driver from ending; the lease of one that died runs out.
        threading.Thread(target=self._work, name=f"rememe-lease-{self._name}", daemon=True).start()

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        try:
            if self.is_held():
                for number in _lease_numbers(self._files, self._name):
                    self._files.remove(lease_file(self._name, number))
        except StorageError:
            return  # then it runs out

    def _said(self) -> bytes:
        return json.dumps({"owner": self._owner, "count": self._count}).encode()

    def _work(self) -> None:
        while not self._ended.wait(RENEW_INTERVAL_S):
            try:
                if self.is_held():
                    self.renew()
            except StorageError:
                continue  # the next renewal may get through; if none does, the lease runs out, which is right


def lease_file(name: str, number: int) -> str:
    """Where the number-th claim on a name is written."""
    return f"{name}/lease-{number:06d}.json"


def last_lease_number(files: RemoteFiles, name: str) -> int:
    """Of the claim that counts; 0 if there is none."""
    return max(_lease_numbers(files, name), default=0)


def _lease_numbers(files: RemoteFiles, name: str) -> list[int]:
    stems = [PurePosixPath(file).stem for file in files.names(name) if file.endswith(".json")]
    return [int(stem[6:]) for stem in stems if stem.startswith("lease-") and stem[6:].isdecimal()]


def _index_of(source: Path, left_out: Collection[str], attempt: str) -> FolderIndex:
    # What begins with a dot is a lock, or is just being written.
    paths = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    files = {name: sha256_file(source / name) for name in sorted(names) if name.split("/")[0] not in left_out}
    return FolderIndex(attempt, files, sum((source / name).stat().st_size for name in files))


def _is_confined(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name

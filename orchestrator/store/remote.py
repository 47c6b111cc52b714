"""Folders at a URI that are there whole or not at all, and claims on them: finished experts, checkpoints, data, runs.

URI/NAME/index.json           which attempt counts, with the SHA-256 of each of its files; written last
URI/NAME/attempt-ID/...       the files of one attempt; never changed
URI/NAME/lease-N.json         the N-th claim: whose it is, renewed all the time

No lock is needed to be right: an attempt's files are whole before the index names them, and two trainings of one key
by accident are two attempts of which the first counts. A lease makes the accident rare.
"""

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from orchestrator.store.remote_files import RemoteFiles, is_absent
from workloads.errors import StorageError
from workloads.files import new_directory, sha256_file
from workloads.places import JobDir
from workloads.progress import Progress
from workloads.sealed import UNREADABLE, sealed, unsealed

logger = logging.getLogger(__name__)

INDEX = "index.json"

RENEW_INTERVAL_S = 10.0
"""Several in a row may fail before the lease runs out."""
LEASE_S = 60.0
"""A lease that nobody has renewed for this long (by the clock of the one who looks) is free."""

SETTLE_S = 0.5
"""Between writing a lease and reading it back, where only the last of two to write can be known to have it."""

LEFT_OUT = {JobDir(Path()).checkpoints.name, JobDir(Path()).lock.name}
"""What of a job serves only whoever trains it."""


_looked_at: set[tuple[str, str]] = set()
"""Files of mirrored folders, with their SHA-256, that this process has sent, brought or read: once is enough."""

ATTEMPT = "attempt-"
"""What the files of a published folder lie below, before a random word."""


class DamagedError(StorageError):
    """What lies at the remote is not what was put there."""

    def __init__(self, place: str, next_step: str) -> None:
        super().__init__(f"{place} is damaged; {next_step}")
        self.place = place


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
            raw = unsealed(json.loads(text))
            found = FolderIndex(raw["attempt"], raw["files"], int(raw.get("num_bytes", 0)))
            # Whoever can write there must not be able to write anywhere else here.
            is_sound = all(map(_is_confined, [found.attempt, *found.files])) and all(
                isinstance(digest, str) for digest in found.files.values()
            )
        except UNREADABLE:
            is_sound = False
        if not is_sound:
            is_published = any(entry.startswith(ATTEMPT) for entry in self.files.names(name))
            raise self._damaged(name, INDEX, is_published=is_published)
        return found

    def damage(self, name: str) -> Iterator[str]:
        """Read a whole folder, and name in a sentence with the next step each file that is not as it was put there."""
        try:
            index = self.index(name) or FolderIndex("", {})
        except DamagedError as error:
            yield str(error)
            return
        for file, digest in index.files.items():
            if self.files.sha256(_place(name, index, file)) != digest:
                yield str(self._damaged(name, file, is_published=bool(index.attempt)))

    def fetch(self, name: str, target: Path) -> bool:
        """Bring a folder here as `target`; False if there is none. StorageError if it is damaged."""
        index = self.index(name)
        if index is None:
            return False
        with new_directory(target) as scratch:
            for file in index.files:
                self._bring(name, index, file, scratch / file)
        return True

    def refresh(self, name: str, target: Path, only: str = "*", *, salvages: bool = False) -> bool:
        """Bring those files of a folder that `target` lacks or has otherwise; False if there is no such folder.

        only: a pattern of their names. What `target` has besides stays. DamagedError if a file is damaged, unless
        salvages: then it is named and left out, for the caller makes it anew.
        """
        index = None
        with _salvaging() if salvages else nullcontext():
            index = self.index(name)
        if index is None:
            return False
        for file, digest in index.files.items():
            if fnmatchcase(file, only) and not ((target / file).is_file() and sha256_file(target / file) == digest):
                with _salvaging() if salvages else nullcontext():
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
        index = _index_of(source, stays, attempt=f"{ATTEMPT}{uuid.uuid4().hex[:12]}")
        for file in index.files:
            self.files.upload(source / file, f"{name}/{index.attempt}/{file}")
        if not self.files.creates:
            self._write_index(name, index)
        elif not self.files.create(f"{name}/{INDEX}", _text_of(index)):
            self.files.remove_folder(f"{name}/{index.attempt}")

    def mirror(
        self,
        name: str,
        source: Path,
        left_out: Collection[str] = (),
        on_progress: Progress = lambda *_: None,
    ) -> None:
        """Bring a folder that changes up to date; its files lie there under their own names, for people to look at.

        What the index says is there is read, once per process, and what is not as it was put there is sent again.
        """
        try:
            known = self.index(name)
        except DamagedError:
            known = None
            logger.warning("%s/%s/%s is damaged; all it tells of is sent again", self.uri, name, INDEX)
        known = known or FolderIndex("", {})
        index = _index_of(source, left_out, attempt="")
        for done, (file, digest) in enumerate(index.files.items()):
            if known.files.get(file) != digest or not self._is_whole(name, file, digest):
                self.files.upload(source / file, f"{name}/{file}")
                _looked_at.add((f"{self.uri}/{name}/{file}", digest))
            on_progress(done + 1, len(index.files))
        if index != known:
            self._write_index(name, index)

    def _is_whole(self, name: str, file: str, digest: str) -> bool:
        seen = (f"{self.uri}/{name}/{file}", digest)
        if seen in _looked_at:
            return True
        if self.files.sha256(f"{name}/{file}") != digest:
            logger.warning("%s was damaged; it is sent again", seen[0])
            return False
        _looked_at.add(seen)
        return True

    def set_aside(self, name: str) -> None:
        """Let a damaged folder count as not there, so that it is made again; what is left of it may be worth a look."""
        if (text := self.files.read(f"{name}/{INDEX}")) is not None:
            self.files.write(f"{name}/damaged-{uuid.uuid4().hex[:6]}.json", text)
            self.files.remove(f"{name}/{INDEX}")

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
        place = _place(name, index, file)
        try:
            self.files.download(place, target)
            is_whole = sha256_file(target) == index.files[file]
        except StorageError as error:
            if not is_absent(error):
                raise
            is_whole = False
        if not is_whole:
            target.unlink(missing_ok=True)
            raise self._damaged(name, file, is_published=bool(index.attempt))
        _looked_at.add((f"{self.uri}/{place}", index.files[file]))

    def _damaged(self, name: str, file: str, *, is_published: bool) -> DamagedError:
        folder = f"{self.uri}/{name}"
        sent_anew = f"run rememe train (or search) again with --storage {self.uri}, which sends it anew"
        made_anew = f"remove {folder} to have it made again"
        return DamagedError(f"{folder}/{file}", made_anew if is_published else sent_anew)

    def _write_index(self, name: str, index: FolderIndex) -> None:
        self.files.write(f"{name}/{INDEX}", _text_of(index))


@contextmanager
def _salvaging() -> Iterator[None]:
    """Of damage that does no harm, for it is made anew: say so, and go on."""
    try:
        yield
    except DamagedError as error:
        logger.warning("%s is damaged; it is left out", error.place)


def _text_of(index: FolderIndex) -> bytes:
    return json.dumps(sealed(index._asdict())).encode()


def _place(name: str, index: FolderIndex, file: str) -> str:
    return "/".join(filter(None, [name, index.attempt, file]))


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

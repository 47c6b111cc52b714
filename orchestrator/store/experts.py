"""The expert store: one directory per content key. A finished expert serves every configuration that contains it.

Whoever wants to train a key claims it first, so that no two drivers train the same at once; a claim ends with its
process, and whoever needs the key next goes on from its last checkpoint.
"""

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.store.remote import DamagedError, RemoteStore
from orchestrator.store.sites import ID_FILE, SharedSite, Site, StorageSite
from orchestrator.store.storage import Folder, Storage
from workloads.errors import DamagedFileError, StorageError
from workloads.files import write_text
from workloads.locks import is_locked, try_lock
from workloads.places import JobDir
from workloads.training.result import JobResult, completed

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLAIMS = ".claims"
"""Where lock files lie: apart from the jobs, whose directories are replaced and set aside while they are claimed."""
SILENCE_S = 30.0
"""A remote that does not answer is left alone this long: every look at it would hold the supervisor up again."""
DAMAGED = "damaged-"
"""What a damaged job's directory is called from then on, before its key."""


class Claim(Protocol):
    """The right to train a key; lasts until it is released or its process ends."""

    def release(self) -> None: ...


class _NoClaim:
    def release(self) -> None:
        """Nothing was claimed."""


NO_CLAIM: Claim | None = _NoClaim()
"""What the remote grants while it does not answer."""


class ExpertStore:
    """Trained (and half-trained) experts under one directory that every node must see.

    remote: a URI (s3://bucket/experts, file:///mnt/experts, anything fsspec knows) that finished experts are published
    to and taken from, shared by stores on other machines.
    """

    def __init__(self, root: Path, remote: str | None = None, storage: Storage | None = None) -> None:
        """With a storage, nodes need not see the directory, and what they finish is in the storage's store."""
        self.root, self._storage = root, storage
        if storage is not None:
            self._remote: RemoteStore | None = storage.store
        else:
            self._remote = None if remote is None else RemoteStore(remote)
        self._id_file = root / ID_FILE
        self._silent_until_s = float("-inf")
        if not self._id_file.exists():
            write_text(self._id_file, uuid.uuid4().hex)

    @property
    def site(self) -> Site:
        """Where nodes train its jobs."""
        return SharedSite(self.root, self.identity) if self._storage is None else StorageSite(self._storage)

    def check_remote(self) -> None:
        """Raise ConfigError if there is a remote that cannot be written."""
        if self._remote is not None:
            self._remote.files.check()

    @property
    def identity(self) -> str:
        """A random word in the directory, by which another node can tell that it sees the same one."""
        return self._id_file.read_text(errors="replace")  # damaged, it still tells one directory from another

    def path(self, key: str) -> Path:
        """Where the job with this key is, or will be, trained."""
        return self.root / key

    def at_nodes(self, key: str) -> Folder:
        """Where nodes find a finished job."""
        return self.path(key) if self._storage is None else self._storage.expert(key)

    def completed(self, key: str) -> JobResult | None:
        """The result of a finished job, fetched if only the remote has it.

        A damaged one is named, set aside and reported as missing. Who was killed between the result and the end of its
        checkpoints has left them: they are removed.
        """
        try:
            result = completed(self.path(key))
            if result is None and self._fetched(key):
                result = completed(self.path(key))
        except DamagedFileError as error:
            aside = set_aside(self.path(key))
            logger.warning("%s; it was moved to %s and will be trained again", error, aside.name)
            return None
        if result is not None:
            shutil.rmtree(JobDir(self.path(key)).checkpoints, ignore_errors=True)
        return result

    def claim(self, key: str) -> Claim | None:
        """The right to train the key; None while another driver, here or at the remote, has it."""
        lock = try_lock(self._claim_file(key))
        if lock is None:
            return None
        # After the disk's lock, which costs nothing: a lease takes several requests. Without its storage a node cannot
        # train, without a store it can.
        lease = self._ask(lambda remote: remote.claim(key), otherwise=NO_CLAIM if self._storage is None else None)
        if lease is None:
            lock.release()
            return None
        return _Both(lock, lease)

    def is_claimed(self, key: str) -> bool:
        """Whether a driver on this disk trains the key now."""
        return is_locked(self._claim_file(key)) is True

    def _claim_file(self, key: str) -> Path:
        return self.root / CLAIMS / f"{key}.lock"

    def publish(self, key: str) -> None:
        """Let other machines have a finished job, if there is a remote; if it does not answer, the next run does it."""
        if JobDir(self.path(key)).result.exists():  # not if the node that trained it has sent it already
            self._ask(lambda remote: remote.publish(key, self.path(key)), otherwise=None)

    def bring(self, key: str) -> None:
        """Have a finished job here that a node without this directory has trained. StorageError if that fails."""
        if self._remote is not None and not JobDir(self.path(key)).result.exists():
            self._remote.fetch(key, self.path(key))

    def _fetched(self, key: str) -> bool:
        return self._ask(lambda remote: self._fetch(remote, key), otherwise=False)

    def _fetch(self, remote: RemoteStore, key: str) -> bool:
        try:
            return remote.fetch(key, self.path(key))
        except DamagedError as error:
            remote.set_aside(key)
            logger.warning("%s is damaged; it was set aside there and will be trained again", error.place)
            return False

    def _ask(self, call: Callable[[RemoteStore], T], *, otherwise: T) -> T:
        """What the remote answers; while it does not, or if there is none, training goes on without it."""
        if self._remote is None or time.monotonic() < self._silent_until_s:
            return otherwise
        try:
            return call(self._remote)
        except StorageError as error:
            self._silent_until_s = time.monotonic() + SILENCE_S
            logger.warning("%s. Training goes on without it", error)
            return otherwise


def set_aside(path: Path) -> Path:
    """Move something damaged out of the way, and say where to; it may be worth a look."""
    # Numbered at random, for a key may be damaged twice and a directory cannot be renamed onto another.
    aside = path.with_name(f"{DAMAGED}{path.name}-{uuid.uuid4().hex[:6]}")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
    return aside


class _Both:
    def __init__(self, *claims: Claim) -> None:
        self._claims = claims

    def release(self) -> None:
        # The lease first: who gets the disk's lock next must not find it taken by us.
        for claim in reversed(self._claims):
            claim.release()

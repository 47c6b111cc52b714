"""Where a node trains a job: in the directory all nodes see, or in its own, with checkpoints in a storage.

Sites travel to workers.
"""

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.store.cache import node_root
from orchestrator.store.remote import DamagedError, Lease, RemoteStore
from orchestrator.store.storage import Storage
from orchestrator.store.tenancy import tenancy
from workloads.config import Job
from workloads.errors import RememeError, StorageError, TakenOverError
from workloads.files import clear_storage_errors
from workloads.locks import try_lock
from workloads.places import JobDir
from workloads.training.result import TrainingStopped

logger = logging.getLogger(__name__)

ID_FILE = "store-id"

PAUSES_S = (1.0, 4.0, 15.0, 40.0)
"""Between tries to send what must not be lost. A last checkpoint must be there before the driver stops waiting."""

TENURES = "tenures"
"""Where in a key's folder of the storage it is said who trains it."""

NUM_KEPT = 2
"""Checkpoints in a storage, as on a disk."""

OnCheckpoint = Callable[[int], None]
"""Hears of the images seen at each checkpoint that another node can go on from."""


class Workplace(NamedTuple):
    """Where a job is trained on this node, and whom to tell of each checkpoint."""

    path: Path
    on_checkpoint: OnCheckpoint


@dataclass(frozen=True)
class SharedSite:
    """Jobs lie in the store's directory, which every node sees; StorageError on one that does not."""

    root: Path
    identity: str

    @contextmanager
    def job(
        self,
        key: str,
        on_checkpoint: OnCheckpoint,
        node: str,
        leave: Callable[[], None] | None = None,
        *,
        writes: bool = True,  # noqa: ARG002
    ) -> Iterator[Workplace]:
        """The job's own directory in the store. leave() is called if it is trained elsewhere from now on."""
        require_same_store(self.root, self.identity, node)
        place = JobDir(self.root / key)
        with nullcontext() if leave is None else tenancy(place, leave):
            yield Workplace(place.path, on_checkpoint)

    def job_here(self, job: Job) -> Job:
        """The job as this node can train it: it sees what the driver sees."""
        return job

    def check(self, node: str) -> None:
        """Raise StorageError, with the node's name, unless the directory is the driver's and can be written here."""
        require_same_store(self.root, self.identity, node)
        probe = self.root / f".probe-{uuid.uuid4().hex[:12]}"
        try:
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise StorageError(
                f"{self.root} cannot be written on node {node} ({error.strerror}); "
                "set --runs-dir to a path all nodes can write, or name a --storage"
            ) from None


def require_same_store(root: Path, identity: str, node: str) -> None:
    """Raise StorageError unless the store a worker sees on its node is the driver's."""
    file = root / ID_FILE
    if not file.is_file() or file.read_text(errors="replace") != identity:
        raise StorageError(
            f"the expert store {root} is not the same directory on node {node}; "
            "set --runs-dir to a path all nodes share, or name a --storage"
        )


@dataclass(frozen=True)
class StorageSite:
    """Jobs are trained in a directory of the node's own, from the last checkpoint in the storage."""

    storage: Storage

    @contextmanager
    def job(
        self,
        key: str,
        on_checkpoint: OnCheckpoint,
        node: str,  # noqa: ARG002
        leave: Callable[[], None] | None = None,  # noqa: ARG002
        *,
        writes: bool = True,
    ) -> Iterator[Workplace]:
        """A fresh directory with the newest checkpoint. What the job leaves in it is sent when the block ends well.

        Of a group, only the first worker writes; the others have what they need from it, and a path where nothing is.
        leave() is never called: who trains the job elsewhere has a directory of its own, and on_checkpoint raises
        TakenOverError here from then on.
        """
        if not writes:
            yield Workplace(node_root() / "jobs" / key, on_checkpoint)
            return
        remote = self.storage.store
        with _scratch(key) as folder, _tenure(remote, key) as tenure:
            _fetch_checkpoint(remote, key, folder)
            uploads = _Uploads(remote, key, JobDir(folder), on_checkpoint, tenure)
            try:
                yield Workplace(folder, uploads.offer)
            except TrainingStopped:
                uploads.finish()
                raise
            finally:
                uploads.close()
            _insist(lambda: _publish(remote, key, folder, tenure))

    def job_here(self, job: Job) -> Job:
        """The job as this node can train it."""
        return self.storage.job_here(job)

    def check(self, node: str) -> None:
        """Raise StorageError, with the node's name, unless the storage and a disk of its own can be written here."""
        try:
            node_root()
            self.storage.check()
        except RememeError as error:
            raise StorageError(f"on node {node}, {error}") from None


Site = SharedSite | StorageSite


@contextmanager
def _scratch(key: str) -> Iterator[Path]:
    """A directory for this attempt alone; it is removed after the block, and so is what killed attempts have left."""
    jobs = node_root() / "jobs"
    folder = jobs / f"{key}-{uuid.uuid4().hex[:12]}"
    lock = try_lock(folder.with_suffix(".lock"))
    assert lock is not None
    try:
        for left_over in jobs.glob(f"{key}-*.lock"):
            if (held := try_lock(left_over)) is not None:
                for path in (left_over.with_suffix(""), _outgoing(left_over)):
                    shutil.rmtree(path, ignore_errors=True)
                left_over.unlink(missing_ok=True)
                held.release()
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


@contextmanager
def _tenure(remote: RemoteStore, key: str) -> Iterator[Lease]:
    """The right to send what is trained, until the next who trains the key takes it.

    A node that was cut off and comes back has lost it: its driver, or another, has started the expert elsewhere.
    """
    tenure = remote.take_over(f"{key}/{TENURES}")
    try:
        yield tenure
    finally:
        tenure.release()


def _require(tenure: Lease, key: str) -> None:
    if not tenure.is_held():
        raise TakenOverError(f"another node has taken over the training of {key}; this one ends")


def _publish(remote: RemoteStore, key: str, folder: Path, tenure: Lease) -> None:
    _require(tenure, key)
    remote.publish(key, folder)
    remote.files.remove_folder(_checkpoints(key))


def _outgoing(folder: Path) -> Path:
    return folder.with_suffix(".outgoing")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _checkpoints(key: str) -> str:
    return f"{key}/{JobDir(Path()).checkpoints.name}"


def _known_checkpoints(remote: RemoteStore, key: str) -> list[str]:
    """Newest first."""
    return sorted((name for name in remote.files.names(_checkpoints(key)) if name.isdecimal()), reverse=True)


def _fetch_checkpoint(remote: RemoteStore, key: str, folder: Path) -> None:
    """The newest that is whole, if there is one."""
    for name in _known_checkpoints(remote, key):
        try:
            if remote.fetch(f"{_checkpoints(key)}/{name}", folder):
                return
        except DamagedError as error:
            remote.set_aside(f"{_checkpoints(key)}/{name}")  # so that it is sent when training comes by again
            logger.warning("%s is damaged; using the one before it", error.place)


class _Uploads:
    """Sends checkpoints from a thread of its own, so that training never waits; only the newest, if it is faster."""

    def __init__(self, remote: RemoteStore, key: str, job: JobDir, on_sent: OnCheckpoint, tenure: Lease) -> None:
        self._remote, self._key, self._job, self._on_sent, self._tenure = remote, key, job, on_sent, tenure
        self._lost: TakenOverError | None = None
        """Set when another has taken over."""

        self._outgoing = _outgoing(job.path)
        self._newest: int | None = None
        """Images seen at the checkpoint that is to be sent next."""

        self._changed = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name=f"rememe-upload-{key}", daemon=True)
        self._thread.start()

    def offer(self, images_seen: int) -> None:
        """Have a checkpoint sent that was just written. TakenOverError if another node goes on with the job."""
        if self._lost is not None:
            raise self._lost
        self._snapshot(images_seen)
        with self._changed:
            skipped, self._newest = self._newest, images_seen
            self._changed.notify()
        if skipped is not None:
            shutil.rmtree(self._place(skipped).path)

    def finish(self) -> None:
        """Wait for the last to be sent. StorageError if it cannot be."""
        self._end_thread()
        if (images_seen := self._newest) is not None:
            _insist(lambda: self._send(images_seen))

    def close(self) -> None:
        """Send no more; what is being sent is."""
        self._end_thread()
        shutil.rmtree(self._outgoing, ignore_errors=True)

    def _end_thread(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _place(self, images_seen: int) -> JobDir:
        return JobDir(self._outgoing / f"{images_seen:012d}")

    def _snapshot(self, images_seen: int) -> None:
        """All that another node needs, at no cost of disk; training removes old checkpoints and adds to its records."""
        target = self._place(images_seen)
        name = target.path.name
        with clear_storage_errors(target.path):
            shutil.copytree(self._job.checkpoints / name, target.checkpoints / name, copy_function=_link)
            for file in self._job.path.iterdir():
                if file.is_file() and not file.name.startswith("."):
                    shutil.copy2(file, target.path)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._is_over)
                if self._is_over:
                    return
                images_seen, self._newest = self._newest, None
            assert images_seen is not None
            try:
                self._send(images_seen)
            except TakenOverError as error:
                self._lost = error
                return
            except StorageError as error:
                logger.warning("%s. Training goes on", error)
                self._offer_again(images_seen)

    def _offer_again(self, images_seen: int) -> None:
        with self._changed:
            # By then there may be a newer one; the last of all is kept for finish().
            self._changed.wait_for(lambda: self._newest is not None or self._is_over, PAUSES_S[-1])
            if self._newest is None:
                self._newest = images_seen
                return
        shutil.rmtree(self._place(images_seen).path)

    def _send(self, images_seen: int) -> None:
        place = self._place(images_seen)
        _require(self._tenure, self._key)
        self._remote.publish(f"{_checkpoints(self._key)}/{place.path.name}", place.path, left_out=())
        shutil.rmtree(place.path)
        self._on_sent(images_seen)
        for old in _known_checkpoints(self._remote, self._key)[NUM_KEPT:]:
            self._remote.files.remove_folder(f"{_checkpoints(self._key)}/{old}")


def _insist(send: Callable[[], None]) -> None:
    """Try for a while what must not be lost. StorageError in the end."""
    for pause_s in PAUSES_S:
        try:
            return send()
        except StorageError as error:
            logger.warning("%s. It is tried again in %g s", error, pause_s)
            time.sleep(pause_s)
    return send()

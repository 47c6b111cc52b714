"""A URI that nodes which share no directory meet at. What is there lies as under a runs directory.

URI/data/FINGERPRINT            prepared data
URI/store/KEY                   finished experts, and leases on those being trained
URI/store/KEY/checkpoints/N     after N images, while it is trained
URI/NAME-FINGERPRINT            a run: description, samples, scores, figures; its ensemble below
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.store.cache import NodeCache, node_root
from orchestrator.store.remote import RemoteStore
from workloads.places import RunDir

OPTION = "--storage"
_PLACES = RunsDir(Path())


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a storage; travels to workers."""

    storage: "Storage"
    name: str

    def here(self) -> Path:
        """On this node's disk, fetched if it is not there."""
        cache = NodeCache(node_root() / "cache", self.storage.cache_bytes)
        return cache.fetch(RemoteStore(self.storage.uri, OPTION), self.name)


Folder = Path | StoredFolder
"""A folder that a worker reads: at the same path on every node, or in a storage."""


def here(folder: Folder) -> Path:
    """Where a folder lies on this node."""
    return folder.here() if isinstance(folder, StoredFolder) else folder


@dataclass(frozen=True)
class Storage:
    """A URI, and how much each node may keep of it; travels to workers."""

    uri: str
    cache_bytes: int

    @property
    def store(self) -> RemoteStore:
        """Where experts are."""
        return RemoteStore(f"{self.uri.rstrip('/')}/{_PLACES.store.name}", OPTION)

    def check(self) -> None:
        """Raise ConfigError unless files can be written, read and removed there."""
        self._remote.files.check()

    def keep_data(self, path: Path, fingerprint: str) -> StoredFolder:
        """Put prepared data there, unless it is there."""
        name = f"{_PLACES.data.name}/{fingerprint[:16]}"
        self._remote.publish(name, path, left_out=())
        return StoredFolder(self, name)

    def keep_run(self, run: RunDir) -> None:
        """Bring what lies there of a run up to date; its ensemble and its status apart."""
        # Whether a driver lives is told by a lock on its own disk.
        self._remote.mirror(run.path.name, run.path, left_out={run.ensemble.path.name, run.status.name})

    def restore_run(self, run: RunDir) -> None:
        """Bring what is missing here of a run, its ensemble apart."""
        self._remote.fetch_missing(run.path.name, run.path)

    def keep_ensemble(self, run: RunDir) -> StoredFolder:
        """Put a run's ensemble there."""
        name = f"{run.path.name}/{run.ensemble.path.name}"
        self._remote.mirror(name, run.ensemble.path)
        return StoredFolder(self, name)

    @property
    def _remote(self) -> RemoteStore:
        return RemoteStore(self.uri, OPTION)

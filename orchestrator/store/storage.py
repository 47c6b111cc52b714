"""A URI that nodes which share no directory meet at. What is there lies as under a runs directory.

URI/data/FINGERPRINT            prepared data
URI/store/KEY                   finished experts, and leases on those being trained
URI/store/KEY/checkpoints/N     after N images, while it is trained
URI/NAME-FINGERPRINT            a run: description, samples, scores, figures; its ensemble and its status below
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan.places import RunsDir, is_run_name
from orchestrator.store.cache import NodeCache, node_root
from orchestrator.store.remote import RemoteStore
from workloads.config import ExecutionConfig
from workloads.errors import ConfigError
from workloads.files import write_text
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

    @classmethod
    def at(cls, uri: str, execution: ExecutionConfig | None = None) -> "Storage":
        """ConfigError if it is no URI."""
        if "://" not in uri:
            raise ConfigError(f"{OPTION} is {uri!r}, which is no URI; a directory all nodes see is given as --runs-dir")
        return cls(uri, int((execution or ExecutionConfig()).cache_size_gb * 1e9))

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
        self._remote.mirror(run.path.name, run.path, left_out={run.ensemble.path.name, run.status.name})

    def restore_run(self, run: RunDir) -> None:
        """Bring what is missing or out of date here of a run, its ensemble apart."""
        self._remote.refresh(run.path.name, run.path)

    def restore_ensemble(self, run: RunDir) -> None:
        """Bring a run's ensemble. ConfigError if it has none yet."""
        if not self._remote.refresh(f"{run.path.name}/{run.ensemble.path.name}", run.ensemble.path):
            raise ConfigError(f"run {run.path.name} in {self._remote.uri} has no ensemble yet; train it to its end")

    def keep_status(self, run: RunDir, text: str) -> None:
        """Put there what a run's driver says of it, for who looks from elsewhere."""
        self._remote.files.write(f"{run.path.name}/{run.status.name}", text.encode())

    def restore_standings(self, copy: RunsDir) -> None:
        """Bring what drivers say of their runs."""
        for run in map(copy.run_named, self.run_names()):
            if (text := self._remote.files.read(f"{run.path.name}/{run.status.name}")) is not None:
                write_text(run.status, text.decode(errors="replace"))

    def run_names(self) -> list[str]:
        """Of all runs there."""
        return [name for name in self._remote.files.names("") if is_run_name(name)]

    def name_of(self, named: str) -> str:
        """Of the run that a user means, by its name with or without its hash, or a path that ends so.

        ConfigError if there is none, or if there are several.
        """
        wanted, known = Path(named).name, self.run_names()
        found = [name for name in known if wanted in {name, name.rpartition("-")[0]}]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{named!r} may be {' or '.join(found)} in {self._remote.uri}; give the whole name")
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise ConfigError(f"no run {named!r} in {self._remote.uri}; {there}")

    def keep_ensemble(self, run: RunDir) -> StoredFolder:
        """Put a run's ensemble there."""
        name = f"{run.path.name}/{run.ensemble.path.name}"
        self._remote.mirror(name, run.ensemble.path)
        return StoredFolder(self, name)

    @property
    def _remote(self) -> RemoteStore:
        return RemoteStore(self.uri, OPTION)

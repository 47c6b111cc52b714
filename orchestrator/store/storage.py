"""A URI that nodes which share no directory meet at. What is there lies as under a runs directory.

URI/data/FINGERPRINT            prepared data
URI/initial/SHA256              weights that runs start from
URI/store/KEY                   finished experts, and leases on those being trained
URI/store/KEY/checkpoints/N     after N images, while it is trained
URI/store/KEY/curves            losses measured of it
URI/studies/NAME                a study: its ledger, its report, its status, and a lease while it is carried out
URI/NAME-FINGERPRINT            a run: description, samples, scores, figures; its ensemble and its status below
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.plan.places import RunsDir, StudyDir, is_run_name
from orchestrator.store.cache import NodeCache, node_root
from orchestrator.store.remote import INDEX, DamagedError, Lease, RemoteStore
from workloads.config import ExecutionConfig, Job
from workloads.config.job import InitialWeights
from workloads.errors import ConfigError
from workloads.files import new_file, sha256_file
from workloads.places import JobDir, RunDir
from workloads.progress import Progress
from workloads.sealed import UNREADABLE, load_json, unsealed

logger = logging.getLogger(__name__)

OPTION = "--storage"
_PLACES = RunsDir(Path())
STORED_BELOW = {path.name for path in (_PLACES.data, _PLACES.store, _PLACES.studies)} | {"initial"}
"""Where in a storage all lies but runs, which are at its top."""


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


def _initial_name(initial: InitialWeights) -> str:
    return f"initial/{initial.sha256[:16]}"


def _data_name(fingerprint: str) -> str:
    return f"{_PLACES.data.name}/{fingerprint[:16]}"


def _content(text: bytes | None) -> dict[str, Any]:
    """Of a sealed file; nothing of one that is not there or is damaged, which is told by its index."""
    try:
        return unsealed(json.loads(text or b"{}"))
    except UNREADABLE:
        return {}


def _name(folder: Path) -> str:
    """Of a run's or a study's directory, there."""
    is_study = folder.parent.name == _PLACES.studies.name
    return f"{_PLACES.studies.name}/{folder.name}" if is_study else folder.name


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

    def expert(self, key: str) -> StoredFolder:
        """A finished job."""
        return StoredFolder(self, f"{_PLACES.store.name}/{key}")

    def check(self) -> None:
        """Raise ConfigError unless files can be written, read and removed there."""
        self._remote.files.check()

    def keep_data(self, path: Path, fingerprint: str) -> StoredFolder:
        """Put prepared data there, unless it is there."""
        name = _data_name(fingerprint)
        self._remote.publish(name, path, left_out=())
        return StoredFolder(self, name)

    def keep_initial(self, initial: InitialWeights) -> None:
        """Put weights to start from there, unless they are there."""
        # Brings torch.
        from workloads.models.weights_file import files_of

        names = [file.name for file in files_of(initial.path)]
        self._remote.publish(_initial_name(initial), initial.path.parent, only=names)

    def job_here(self, job: Job) -> Job:
        """The job as this node can train it: with its weights to start from in the node's cache."""
        if (initial := job.initial) is None:
            return job
        folder = StoredFolder(self, _initial_name(initial)).here()
        return job.model_copy(update={"initial": initial.model_copy(update={"path": folder / initial.path.name})})

    def keep_run(self, run: RunDir) -> None:
        """Bring what lies there of a run up to date; its ensemble and its status apart."""
        self._remote.mirror(run.path.name, run.path, left_out={run.ensemble.path.name, run.status.name})

    def keep_files(self, files: Sequence[Path]) -> None:
        """Put tables and pictures there, each under its own name."""
        for file in files:
            self._remote.files.upload(file, file.name)

    def restore_run(self, run: RunDir) -> None:
        """Bring what is missing or out of date here of a run, its ensemble apart; what is damaged is made anew."""
        self._remote.refresh(run.path.name, run.path, salvages=True)

    def restore_pictures(self, run: RunDir) -> None:
        """Bring the grids of samples of a run."""
        self._remote.refresh(run.path.name, run.path, only=f"{run.grid.stem}*")

    def restore_scores(self, run: RunDir) -> None:
        """Bring what was measured of a run."""
        self._remote.refresh(run.path.name, run.path, only=run.scores.name)

    def restore_ensemble(self, run: RunDir) -> None:
        """Bring a run's ensemble. ConfigError if it has none yet."""
        if not self._remote.refresh(f"{run.path.name}/{run.ensemble.path.name}", run.ensemble.path):
            raise ConfigError(f"run {run.path.name} in {self._remote.uri} has no ensemble yet; train it to its end")

    def keep_status(self, run: RunDir) -> None:
        """Put there what a run's driver says of it, for who looks from elsewhere."""
        self._remote.files.write(f"{_name(run.path)}/{run.status.name}", run.status.read_bytes())

    def restore_standings(self, copy: RunsDir) -> None:
        """Bring what drivers say of their runs and studies, and the ledgers of these."""
        studies = [copy.study(name) for name in self.study_names()]
        for study in studies:
            self.restore_study(study)
        for run in [*map(copy.run_named, self.run_names()), *(RunDir(study.path) for study in studies)]:
            if (text := self._remote.files.read(f"{_name(run.path)}/{run.status.name}")) is not None:
                with new_file(run.status) as scratch:
                    scratch.write_bytes(text)

    def keep_study(self, study: StudyDir) -> None:
        """Bring what lies there of a study up to date."""
        progress, status = study.progress_file(0).parent, RunDir(study.path).status
        left_out = {path.name for path in (study.tune_dir, study.stop_file, study.owner_file, progress, status)}
        self._remote.mirror(_name(study.path), study.path, left_out)

    def require_same_study(self, study: StudyDir) -> None:
        """Raise ConfigError if what is here under its name is another study; bring its description if there is none."""
        file, name = study.description_file, _name(study.path)
        try:
            index = self._remote.index(name)
            known = None if index is None else index.files.get(file.name)
        except DamagedError:  # who has the study's files sends them anew
            known = self._remote.files.sha256(f"{name}/{file.name}")
        if known is None:
            return
        if file.exists() and sha256_file(file) != known:
            raise ConfigError(
                f"{study.path} is another study than {study.name} in {self._remote.uri}; give this one a name, or "
                "choose another --runs-dir"
            )
        self._remote.refresh(name, study.path, only=file.name)

    def restore_study(self, study: StudyDir) -> bool:
        """Bring what is missing or out of date here of a study; False if there is none there.

        A damaged configuration is named and left out: its point is drawn again. DamagedError about the description.
        """
        self.require_same_study(study)
        return self._remote.refresh(_name(study.path), study.path, salvages=True)

    def keep_curve(self, job: JobDir, file: Path) -> None:
        """Put there what was measured of a finished job."""
        self.store.files.upload(file, f"{job.path.name}/{job.curves.name}/{file.name}")

    def restore_curves(self, job: JobDir) -> None:
        """Bring what was measured of it; what is damaged there is measured, and sent, again."""
        files, folder = self.store.files, f"{job.path.name}/{job.curves.name}"
        for name in files.names(folder):
            target = job.curves / name
            if not target.exists():
                files.download(f"{folder}/{name}", target)
                try:
                    load_json(target)
                except UNREADABLE:
                    logger.warning("%s/%s/%s is damaged; it is left out", files.uri, folder, name)
                    target.unlink()

    def claim_study(self, study: StudyDir) -> Lease:
        """The right to carry it out, until it is released. Waits for the lease of a driver that died to run out.

        ConfigError if the driver lives.
        """
        lease = self._remote.claim_after_death(_name(study.path))
        if lease is None:
            raise ConfigError(
                f"study {study.name} in {self._remote.uri} is being run by another driver; wait for it, stop it, or "
                "give this one a name"
            )
        return lease

    def run_names(self) -> list[str]:
        """Of all runs there."""
        return [name for name in self._remote.files.names("") if is_run_name(name)]

    def study_names(self) -> list[str]:
        """Of all studies there."""
        return self._remote.files.names(_PLACES.studies.name)

    def place_of(self, folder: Path) -> str:
        """Where people find what lies there of a run's or a study's directory, without a password."""
        return f"{self.shown}/{_name(folder)}"

    def study(self, named: str) -> str | None:
        """Where a study of this name lies there, if there is one."""
        return f"{_PLACES.studies.name}/{named}" if named in self.study_names() else None

    @property
    def shown(self) -> str:
        """The URI, without a password."""
        return self._remote.uri

    def folders_of(self, run: str) -> list[tuple[str, str]]:
        """What a run uses there: what it is, and under which name it lies. Only what there is."""
        files, place = self._remote.files, RunDir(Path(run))
        found = [("run", run), ("ensemble", str(place.ensemble.path))]
        plan, ensemble = (_content(files.read(str(file))) for file in (place.plan, place.ensemble.index))
        keys = [str(job.get("key")) for job in plan.get("jobs", ())]
        found += [("expert", f"{_PLACES.store.name}/{key}") for key in keys]
        if fingerprint := str(ensemble.get("data", {}).get("fingerprint", "")):
            found.append(("data", _data_name(fingerprint)))
        return [(what, name) for what, name in found if INDEX in files.names(name)]

    def damage(self, name: str) -> Iterator[str]:
        """Read all that lies there under a name, and say of each file that is not as it was put there what to do."""
        return self._remote.damage(name)

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

    def keep_ensemble(self, run: RunDir, on_progress: Progress = lambda *_: None) -> StoredFolder:
        """Put a run's ensemble there, or what of it is missing or damaged there."""
        name = f"{run.path.name}/{run.ensemble.path.name}"
        self._remote.mirror(name, run.ensemble.path, on_progress=on_progress)
        return StoredFolder(self, name)

    @property
    def _remote(self) -> RemoteStore:
        return RemoteStore(self.uri, OPTION)

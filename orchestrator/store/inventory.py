"""What is in the expert store, whether it is whole, and what nothing needs any more."""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.plan.places import RunsDir
from orchestrator.store.experts import DAMAGED, ExpertStore
from orchestrator.store.remote import RemoteStore, last_lease_number
from workloads.errors import ConfigError
from workloads.files import SCRATCH
from workloads.places import CacheDir, JobDir
from workloads.sealed import UNREADABLE, load_json

logger = logging.getLogger(__name__)

UNTOUCHED_S = 3600.0
"""What is being written has been written to since, however slow the network is."""

GIVEN_UP_S = 24 * 3600.0
"""A score whose features nobody has added to for so long is hardly gone on with; it would only take longer."""


@dataclass(frozen=True)
class StoreEntry:
    """One key's directory."""

    key: str
    path: Path
    state: str
    """finished, training (claimed by a driver now), begun, or damaged (set aside)."""

    num_bytes: int
    num_users: int | None
    """Configurations under the runs directory that contain it; None at a URI, which knows of none."""

    age_s: float | None
    """Since anything was written; None at a URI, where no clock is the same."""


class Leftover(NamedTuple):
    """Something that nobody will ever look at again."""

    path: Path
    what: str
    num_bytes: int
    age_s: float
    """Since anything was written."""


def entries_of(runs: RunsDir) -> list[StoreEntry]:
    """One per key. ConfigError if there is no store yet."""
    if not runs.store.is_dir():
        raise ConfigError(f"no expert store under {runs.given} yet; train something first: rememe train demo-meme")
    store, now_s = ExpertStore(runs.store), time.time()
    users, unread = _users(runs)
    for file in unread:
        logger.warning("%s is damaged; what it uses is not counted", file)
    entries = []
    # Claims, and what is being written, begin with a dot.
    for path in sorted(path for path in runs.store.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [file for file in path.rglob("*") if file.is_file()]
        entries.append(
            StoreEntry(
                key=path.name,
                path=path,
                state=_state(store, path),
                num_bytes=sum(file.stat().st_size for file in files),
                num_users=users[path.name],
                age_s=now_s - max((file.stat().st_mtime for file in files), default=path.stat().st_mtime),
            )
        )
    return entries


def entries_at(remote: RemoteStore, copies: Path) -> list[StoreEntry]:
    """What a store at a URI holds, one per key. Its descriptions are brought into a directory for told_of.

    StorageError if it does not answer, or if one is damaged.
    """
    entries = []
    for key in remote.files.names(""):
        index = remote.index(key)
        if index is None and not last_lease_number(remote.files, key):
            continue
        # No expert's own config.json, which nobody lists.
        for file in (JobDir(Path()).description, JobDir(Path()).result):
            remote.refresh(key, copies / key, only=file.name)
        state, num_bytes = ("training", 0) if index is None else ("finished", index.num_bytes)
        entries.append(StoreEntry(key, copies / key, state, num_bytes, num_users=None, age_s=None))
    return entries


def unused(runs: RunsDir) -> list[StoreEntry]:
    """What no configuration contains, and what was set aside as damaged.

    ConfigError if it is not known what all configurations contain.
    """
    if unread := _users(runs)[1]:
        raise ConfigError(
            f"{unread[0]} is damaged, so which experts it uses is not known and none is removed; "
            "run its configuration again, or remove it"
        )
    return [entry for entry in entries_of(runs) if entry.num_users == 0 and entry.state != "training"]


def left_over(runs: RunsDir) -> list[Leftover]:
    """What processes that were killed have left: checkpoints of finished jobs, and what was only half written."""
    store, now_s = ExpertStore(runs.store), time.time()
    found = []
    for entry in entries_of(runs):
        checkpoints = JobDir(entry.path).checkpoints
        if entry.state == "finished" and checkpoints.is_dir() and not store.is_claimed(entry.key):
            found.append(_leftover(checkpoints, f"checkpoints of the finished job {entry.key}", now_s))
    # Only their age tells them from what somebody is writing now, perhaps on another machine.
    scratch = [_leftover(path, f"half-written {path.name}", now_s) for path in runs.store.rglob(SCRATCH)]
    return [*found, *(one for one in scratch if one.age_s > UNTOUCHED_S), *_left_blocks(runs, now_s)]


def _left_blocks(runs: RunsDir, now_s: float) -> list[Leftover]:
    """Features that a killed measurement would go on from; they are removed together, if none has been made lately."""
    blocks = CacheDir(runs.cache).blocks
    if not blocks.is_dir() or not any(blocks.iterdir()):
        return []
    left = _leftover(blocks, "features of measurements that did not end", now_s)
    return [left] if left.age_s > GIVEN_UP_S else []


def remove(paths: Iterable[Path]) -> None:
    """Delete them."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _leftover(path: Path, what: str, now_s: float) -> Leftover:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    newest_s = max((file.stat().st_mtime for file in [path, *files]), default=now_s)
    return Leftover(path, what, sum(file.stat().st_size for file in files), now_s - newest_s)


def _state(store: ExpertStore, path: Path) -> str:
    if path.name.startswith(DAMAGED):
        return "damaged"
    if JobDir(path).result.exists():
        return "finished"
    return "training" if store.is_claimed(path.name) else "begun"


def _users(runs: RunsDir) -> tuple[Counter[str], list[Path]]:
    """By key: how many configurations contain it, those of studies that were given up early included.

    And the files that cannot be read.
    """
    found: dict[str, set[str]] = {}
    unread = []
    files = [(run.plan, run.path.name) for run in runs.all_plans()]
    files += [(file, f"{study.name}/{file.stem}") for study in runs.all_studies() for file in study.trial_files()]
    for file, name in files:
        try:
            raw = load_json(file)
            for job in raw["jobs"]:
                found.setdefault(str(job["key"]), set()).update(raw.get("runs") or [name])
        except (OSError, *UNREADABLE):
            unread.append(file)
    return Counter({key: len(names) for key, names in found.items()}), unread


def told_of(entry: StoreEntry) -> list[str]:
    """Job, interval, network, images, loss of a finished job; what is not known yet is empty."""
    job_file, result_file = JobDir(entry.path).description, JobDir(entry.path).result
    if not (job_file.exists() and result_file.exists()):
        return [""] * 5
    try:
        job, result = load_json(job_file), load_json(result_file)
        interval = job.get("interval")
        where = "[{}, {})".format(*interval) if interval else "all"
        return [job["name"], where, job["model"]["kind"], f"{result['images_seen']:,}", f"{result['final_loss']:.4f}"]
    except (OSError, *UNREADABLE):
        return [f"damaged {job_file.name} or {result_file.name}", "", "", "", ""]

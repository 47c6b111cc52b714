"""What is in the expert store, whether it is whole, and what nothing needs any more."""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.store.experts import DAMAGED, ExpertStore
from workloads.errors import CheckpointError, ConfigError
from workloads.places import JobDir
from workloads.training.result import completed

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading JSON of an unexpected form raises."""


@dataclass(frozen=True)
class StoreEntry:
    """One key's directory."""

    key: str
    path: Path
    state: str
    """finished, training (claimed by a driver now), begun, or damaged (set aside)."""

    num_bytes: int
    num_users: int
    """Configurations under the runs directory that contain it."""

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


def damage_of(entries: Sequence[StoreEntry], on_progress: Callable[[int, int], None]) -> list[str]:
    """A sentence for each finished job whose weights do not match their checksum. Changes nothing."""
    damaged = []
    for index, entry in enumerate(entries):
        try:
            completed(entry.path)
        except CheckpointError as error:
            damaged.append(str(error))
        on_progress(index + 1, len(entries))
    return damaged


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


def remove(entries: Sequence[StoreEntry]) -> None:
    """Delete them."""
    for entry in entries:
        shutil.rmtree(entry.path)


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
            raw = json.loads(file.read_text())
            for job in raw["jobs"]:
                found.setdefault(str(job["key"]), set()).update(raw.get("runs") or [name])
        except UNREADABLE:
            unread.append(file)
    return Counter({key: len(names) for key, names in found.items()}), unread


def told_of(entry: StoreEntry) -> list[str]:
    """Job, interval, network, images, loss of a finished job; what is not known yet is empty."""
    job_file, result_file = JobDir(entry.path).description, JobDir(entry.path).result
    if not (job_file.exists() and result_file.exists()):
        return [""] * 5
    try:
        job, result = json.loads(job_file.read_text()), json.loads(result_file.read_text())
        interval = job.get("interval")
        where = "[{}, {})".format(*interval) if interval else "all"
        return [job["name"], where, job["model"]["kind"], f"{result['images_seen']:,}", f"{result['final_loss']:.4f}"]
    except UNREADABLE:
        return [f"damaged {job_file.name} or {result_file.name}", "", "", "", ""]

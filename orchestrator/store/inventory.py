"""`rememe store`: what is in the expert store, whether it is whole, and what nothing needs any more."""

import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from orchestrator.plan.places import RunsDir
from orchestrator.store.experts import ExpertStore
from orchestrator.terminal.view import duration, progress, si, wide_console
from workloads.errors import CheckpointError, ConfigError
from workloads.training.result import completed


@dataclass(frozen=True)
class Entry:
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


def list_store(runs_dir: Path, *, as_json: bool) -> None:
    """A line per key."""
    runs = _runs(runs_dir)
    entries = _entries(runs)
    if as_json:
        print(json.dumps([{**vars(entry), "path": str(entry.path)} for entry in entries], indent=2))
        return
    table = Table(title=f"{runs.store}: {len(entries)} jobs, {si(sum(entry.num_bytes for entry in entries))}B")
    for column in ("key", "state", "job", "interval", "network"):
        table.add_column(column, no_wrap=True)
    for column in ("images", "loss", "size", "used by", "last written"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        size = f"{si(entry.num_bytes)}B"
        table.add_row(
            entry.key, entry.state, *_described(entry), size, str(entry.num_users), f"{duration(entry.age_s)} ago"
        )
    wide_console().print(table)


def verify_store(runs_dir: Path) -> int:
    """Compare every finished job's weights with their checksum; 0 if all match, 1 otherwise. Changes nothing."""
    entries = [entry for entry in _entries(_runs(runs_dir)) if entry.state == "finished"]
    damaged = []
    with progress("verifying", "jobs") as advance:
        for index, entry in enumerate(entries):
            try:
                completed(entry.path)
            except CheckpointError as error:
                damaged.append(str(error))
            advance(index + 1, len(entries))
    for problem in damaged:
        print(problem)
    print(f"{len(entries) - len(damaged)} of {len(entries)} finished jobs are whole")
    return 1 if damaged else 0


def collect_garbage(runs_dir: Path, *, yes: bool) -> None:
    """Name what no configuration contains, and what was set aside as damaged; delete it if told to."""
    doomed = [entry for entry in _entries(_runs(runs_dir)) if entry.num_users == 0 and entry.state != "training"]
    for entry in doomed:
        print(f"{entry.key}  {entry.state:9} {si(entry.num_bytes):>8}B  last written {duration(entry.age_s)} ago")
    total = f"{len(doomed)} jobs, {si(sum(entry.num_bytes for entry in doomed))}B"
    if not doomed:
        print("nothing to remove: some configuration contains every job")
    elif not yes:
        print(f"{total} would be removed; do it with: rememe store gc --yes")
    else:
        for entry in doomed:
            shutil.rmtree(entry.path)
        print(f"{total} removed")


def _runs(runs_dir: Path) -> RunsDir:
    runs = RunsDir(runs_dir)
    if not runs.store.is_dir():
        raise ConfigError(f"no expert store under {runs_dir} yet; train something first: rememe train demo-meme")
    return runs


def _entries(runs: RunsDir) -> list[Entry]:
    store, users, now_s = ExpertStore(runs.store), _users(runs), time.time()
    entries = []
    for path in sorted(path for path in runs.store.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [file for file in path.rglob("*") if file.is_file()]
        entries.append(
            Entry(
                key=path.name,
                path=path,
                state=_state(store, path),
                num_bytes=sum(file.stat().st_size for file in files),
                num_users=users[path.name],
                age_s=now_s - max((file.stat().st_mtime for file in files), default=path.stat().st_mtime),
            )
        )
    return entries


def _state(store: ExpertStore, path: Path) -> str:
    if path.name.startswith("damaged-"):
        return "damaged"
    if (path / "result.json").exists():
        return "finished"
    return "training" if store.is_claimed(path.name) else "begun"


def _users(runs: RunsDir) -> Counter[str]:
    """By key: how many configurations contain it, those of studies that were given up early included."""
    found: dict[str, set[str]] = {}
    for file in runs.path.glob("*/plan.json"):
        for job in json.loads(file.read_text())["jobs"]:
            found.setdefault(job["key"], set()).add(file.parent.name)
    for study in runs.all_studies():
        for file in study.trial_files():
            trial = json.loads(file.read_text())
            for job in trial["jobs"]:
                found.setdefault(job["key"], set()).update(trial["runs"] or [f"{study.name}/{file.stem}"])
    return Counter({key: len(names) for key, names in found.items()})


def _described(entry: Entry) -> list[str]:
    """Job, interval, network, images, loss of a finished job; what is not known yet is empty."""
    job_file, result_file = entry.path / "job.json", entry.path / "result.json"
    if not (job_file.exists() and result_file.exists()):
        return [""] * 5
    job, result = json.loads(job_file.read_text()), json.loads(result_file.read_text())
    interval = job.get("interval")
    where = "[{}, {})".format(*interval) if interval else "all"
    return [job["name"], where, job["model"]["kind"], f"{result['images_seen']:,}", f"{result['final_loss']:.4f}"]

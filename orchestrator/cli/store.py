"""`rememe store`: what is in the store of trained experts, whether it is whole, and what nothing needs any more."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import RUNS, AsJson, RunsDirOption, StandingStorage, Store
from orchestrator.cli.results import print_json

if TYPE_CHECKING:
    from orchestrator.store.damage import Damage
    from orchestrator.store.inventory import StoreEntry
    from orchestrator.store.remote import RemoteStore

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the store of trained experts.")


@app.command("ls")
def store_ls(
    runs_dir: RunsDirOption = RUNS, store: Store = None, storage: StandingStorage = None, json: AsJson = False
) -> None:
    """List trained experts: what they are, how large, and how many configurations use them."""
    from tempfile import TemporaryDirectory

    from orchestrator.plan.places import RunsDir
    from orchestrator.store.inventory import entries_at, entries_of
    from orchestrator.terminal.tables import print_store

    remote = _remote(store, storage)
    with TemporaryDirectory(prefix="rememe-") as scratch:
        if remote is None:
            place, entries = str(RunsDir(runs_dir).store), entries_of(RunsDir(runs_dir))
        else:
            place, entries = remote.uri, entries_at(remote, Path(scratch))
        if json:
            at = "" if remote is None else f"{place}/"
            rows = [{**vars(entry), "path": f"{at}{entry.key}" if at else str(entry.path)} for entry in entries]
            print_json(rows)
        else:
            print_store(place, entries)


def _remote(store: str | None, storage: str | None) -> "RemoteStore | None":
    """The store at a URI that is to be looked at. ConfigError if two are given."""
    from orchestrator.store.remote import RemoteStore
    from orchestrator.store.storage import Storage
    from workloads.errors import ConfigError

    if store is not None and storage is not None:
        raise ConfigError("--store and --storage are both given; a storage has a store: leave one out")
    if storage is not None:
        return Storage.at(storage).store
    return None if store is None else RemoteStore(store)


@app.command("verify")
def store_verify(runs_dir: RunsDirOption = RUNS, json: AsJson = False) -> None:
    """Compare every expert, checkpoint and curve with its checksum. Changes nothing; exit code 1 if any differ."""
    if json:
        _, damages = _damages(runs_dir)
        print_json([{"path": str(damage.part), "text": damage.text} for damage in damages])
    else:
        damages = _verified(runs_dir)
    raise typer.Exit(1 if damages else 0)


@app.command("repair")
def store_repair(
    runs_dir: RunsDirOption = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, ask.")] = False,
) -> None:
    """Set aside what verify finds damaged, so that the next run trains (or measures) it anew."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.store.damage import repair
    from orchestrator.store.experts import ExpertStore

    damages = _verified(runs_dir)
    if damages and (yes or typer.confirm("set aside?")):
        for done in repair(ExpertStore(RunsDir(runs_dir).store), damages):
            print(done)
        print("run rememe train again to have it made anew; rememe store gc removes what was set aside")


def _damages(runs_dir: Path) -> "tuple[list[StoreEntry], list[Damage]]":
    """Whatever is not being trained, and its damage."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.store.damage import damage_of
    from orchestrator.store.inventory import entries_of
    from orchestrator.terminal.progress import progress

    entries = [entry for entry in entries_of(RunsDir(runs_dir)) if entry.state in {"finished", "begun"}]
    with progress("verifying", "jobs") as advance:
        return entries, damage_of(entries, advance)


def _verified(runs_dir: Path) -> "list[Damage]":
    """The damage, told in lines."""
    entries, damages = _damages(runs_dir)
    for damage in damages:
        print(damage.text)
    finished = [entry for entry in entries if entry.state == "finished"]
    num_whole = sum(not any(damage.part.is_relative_to(entry.path) for damage in damages) for entry in finished)
    num_begun = len(entries) - len(finished)
    begun = f"; {num_begun} are begun only, and their checkpoints are looked at" if num_begun else ""
    print(f"{num_whole} of {len(finished)} finished jobs are whole{begun}")
    return damages


@app.command("gc")
def store_gc(
    runs_dir: RunsDirOption = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what.")] = False,
    json: AsJson = False,
) -> None:
    """Remove experts that no configuration contains any more, those set aside as damaged, and what kills have left."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.store.inventory import left_over, remove, unused
    from orchestrator.terminal.words import duration, si

    runs = RunsDir(runs_dir)
    doomed, others = unused(runs), left_over(runs)
    paths = [*(entry.path for entry in doomed), *(one.path for one in others)]
    if json:
        told = [(f"{entry.state} job {entry.key}", entry.num_bytes) for entry in doomed]
        told += [(one.what, one.num_bytes) for one in others]
        remove(paths if yes else [])
        print_json(
            [
                {"path": str(path), "what": what, "num_bytes": num_bytes, "is_removed": yes}
                for path, (what, num_bytes) in zip(paths, told, strict=True)
            ]
        )
        return
    for entry in doomed:
        print(f"{entry.key}  {entry.state:9} {si(entry.num_bytes):>8}B  last written {duration(entry.age_s or 0)} ago")
    for one in others:
        print(f"{one.what}  {si(one.num_bytes):>8}B  last written {duration(one.age_s)} ago")
    num_bytes = sum(entry.num_bytes for entry in doomed) + sum(one.num_bytes for one in others)
    total = f"{len(doomed)} jobs, {len(others)} leftovers, {si(num_bytes)}B"
    if not (doomed or others):
        print("nothing to remove: some configuration contains every job")
    elif not yes:
        print(f"{total} would be removed; do it with: rememe store gc --yes")
    else:
        remove(paths)
        print(f"{total} removed")

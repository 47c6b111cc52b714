"""`rememe store`: what is in the store of trained experts, whether it is whole, and what nothing needs any more."""

from typing import Annotated

import typer

from orchestrator.cli.arguments import RUNS, AsJson, RunsDirOption

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the store of trained experts.")


@app.command("ls")
def store_ls(runs_dir: RunsDirOption = RUNS, json: AsJson = False) -> None:
    """List trained experts: what they are, how large, and how many configurations use them."""
    # `json` is the option here.
    from json import dumps as to_text

    from orchestrator.plan.places import RunsDir
    from orchestrator.store.inventory import entries_of
    from orchestrator.terminal.tables import print_store

    runs = RunsDir(runs_dir)
    entries = entries_of(runs)
    if json:
        print(to_text([{**vars(entry), "path": str(entry.path)} for entry in entries], indent=2))
    else:
        print_store(runs.store, entries)


@app.command("verify")
def store_verify(runs_dir: RunsDirOption = RUNS) -> None:
    """Compare the weights of every finished expert with their checksum. Changes nothing; exit code 1 if any differ."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.store.inventory import damage_of, entries_of
    from orchestrator.terminal.progress import progress

    entries = [entry for entry in entries_of(RunsDir(runs_dir)) if entry.state == "finished"]
    with progress("verifying", "jobs") as advance:
        damaged = damage_of(entries, advance)
    for problem in damaged:
        print(problem)
    print(f"{len(entries) - len(damaged)} of {len(entries)} finished jobs are whole")
    raise typer.Exit(1 if damaged else 0)


@app.command("gc")
def store_gc(
    runs_dir: RunsDirOption = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what.")] = False,
) -> None:
    """Remove experts that no configuration contains any more, and those set aside as damaged."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.store.inventory import remove, unused
    from orchestrator.terminal.words import duration, si

    doomed = unused(RunsDir(runs_dir))
    for entry in doomed:
        print(f"{entry.key}  {entry.state:9} {si(entry.num_bytes):>8}B  last written {duration(entry.age_s)} ago")
    total = f"{len(doomed)} jobs, {si(sum(entry.num_bytes for entry in doomed))}B"
    if not doomed:
        print("nothing to remove: some configuration contains every job")
    elif not yes:
        print(f"{total} would be removed; do it with: rememe store gc --yes")
    else:
        remove(doomed)
        print(f"{total} removed")

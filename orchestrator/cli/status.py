"""`rememe status`: what runs do that somebody else has started."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import JOB_SERVER, RUNS, AsJson, RunsDirOption, StandingStorage
from orchestrator.cli.complete import complete_run
from orchestrator.execution import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rich.console import RenderableType

    from orchestrator.search.running.status import WholeStatus

WATCH_INTERVAL_S = 2.0


def status(
    named: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|JOB]",
            help="A run or study by its directory or name, or a job; without it, all that goes on.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    address: Annotated[str | None, JOB_SERVER] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on looking until Ctrl-C.")] = False,
    json: AsJson = False,
    storage: StandingStorage = None,
) -> None:
    """Say what a run does: experts by state, node, speed, time left, restarts with their causes."""
    if named is None:
        look = _all_going_on(runs_dir, storage)
    else:
        look_at_one = _one(named, runs_dir, address, storage)
        look = lambda: ((found := look_at_one()).to_json(), found.show())  # noqa: E731
    if json:
        from json import dumps as to_text

        # On one line, so that it is found among others: in the log of a job, or when it is watched.
        _repeat(lambda: print(to_text(look()[0]), flush=True), watch=watch)
    else:
        _show(lambda: look()[1], watch=watch)


def watch(
    named: Annotated[
        str,
        typer.Argument(
            metavar="RUN|JOB", help="As for rememe status.", show_default=False, autocompletion=complete_run
        ),
    ],
    runs_dir: RunsDirOption = RUNS,
    address: Annotated[str | None, JOB_SERVER] = None,
    storage: StandingStorage = None,
) -> None:
    """Look on until a run or a study ends: a table in a terminal, elsewhere a line for all that happens.

    Ends with 0 if it has finished, else with 1; Ctrl-C ends the looking alone. In a browser: rememe ui.
    """
    from orchestrator.search.running.watching import watch_to_end
    from orchestrator.terminal.tables import live_console

    found = watch_to_end(_one(named, runs_dir, address, storage), live_console())
    raise typer.Exit(0 if found.status.ended == "finished" else 1)


def _all_going_on(runs_dir: Path, storage: str | None) -> "Callable[[], tuple[Any, RenderableType]]":
    from orchestrator.plan.standing import DriverState
    from orchestrator.runs.status import view_runs
    from orchestrator.runs.stored import runs_to_look_at
    from orchestrator.terminal.status import runs_table

    def look() -> "tuple[Any, RenderableType]":
        runs = runs_to_look_at(runs_dir, storage)
        views = view_runs(runs)
        going_on = [view for view in views if view.driver is not DriverState.ENDED]
        said = [{"driver": view.driver.value, "status": view.status.model_dump(mode="json")} for view in going_on]
        if going_on:
            return said, runs_table([(view.status, view.driver) for view in going_on])
        latest = f"; the latest was {views[0].status.name}" if views else ""
        return said, f"nothing goes on under {runs.shown}{latest}"

    return look


def _one(named: str, runs_dir: Path, address: str | None, storage: str | None) -> "Callable[[], WholeStatus]":
    from orchestrator.runs.stored import runs_to_look_at
    from orchestrator.search.running.status import status_here, status_of_job
    from workloads.errors import ConfigError

    def look_here() -> "WholeStatus":
        return status_here(named, runs_to_look_at(runs_dir, storage))

    try:
        look_here()
    except ConfigError:
        if address is None:
            raise
    else:
        return look_here
    environment.prepare_ray_environment(address)
    from orchestrator.execution.jobs import JobServer

    server = JobServer(address)

    return lambda: status_of_job(server, named)


def _show(look: "Callable[[], RenderableType]", *, watch: bool) -> None:
    from rich.live import Live

    from orchestrator.terminal.tables import live_console, wide_console

    console = live_console() if watch else wide_console()
    if not (watch and console.is_terminal):
        _repeat(lambda: console.print(look()), watch=watch)
        return
    with Live(look(), console=console, auto_refresh=False) as live:
        _repeat(lambda: live.update(look(), refresh=True), watch=True)


def _repeat(act: "Callable[[], None]", *, watch: bool) -> None:
    import time

    act()
    while watch:
        time.sleep(WATCH_INTERVAL_S)
        act()

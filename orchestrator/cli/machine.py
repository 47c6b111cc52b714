"""Commands about this machine: ui, doctor."""

from typing import Annotated

import typer

from orchestrator.cli.arguments import RUNS, Address, Overrides, RunsDirOption, StorageOption, Store
from orchestrator.execution import environment


def ui(
    runs_dir: RunsDirOption = RUNS,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow browser on the results, bound to this machine only."""
    from orchestrator.tracking.ui import open_ui

    raise typer.Exit(open_ui(runs_dir, port=port))


def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Preset or YAML file whose experts are to find a place.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    store: Store = None,
    storage: StorageOption = None,
) -> None:
    """Say what is wrong with this machine or cluster, and how to fix it."""
    from workloads.config.load import load_config

    loaded = None if config is None else load_config(config, overrides or ())
    environment.prepare_ray_environment(address)
    from orchestrator.runs.doctor import examine
    from orchestrator.terminal.tables import print_finding

    all_ok = True
    for finding in examine(runs_dir, address, config=loaded, store=store, storage=storage):
        print_finding(finding.subject, finding.text, is_ok=finding.is_ok)
        all_ok = all_ok and finding.is_ok
    raise typer.Exit(0 if all_ok else 1)

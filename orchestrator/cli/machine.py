"""Commands about this machine: ui, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import RUNS, Address, Overrides, RunsDirOption, StorageOption, Store
from orchestrator.execution import environment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.plan.fitness import Finding


def ui(
    runs_dir: RunsDirOption = RUNS,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of MLflow.")] = 5000,
    live_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of the live page; default: the one after --port.", show_default=False),
    ] = None,
    only_live: Annotated[
        bool, typer.Option("--only-live", help="Serve the live page alone: at once, and before anything is in MLflow.")
    ] = False,
) -> None:
    """Open the MLflow browser on the results, and a live page of what runs do, bound to this machine only.

    From another machine: ssh -L 5000:localhost:5000 -L 5001:localhost:5001 HOST.
    """
    from orchestrator.live.server import serve_alone, start_live_page
    from orchestrator.plan.places import RunsDir
    from orchestrator.tracking.ui import open_ui

    runs = RunsDir(runs_dir)
    if only_live:
        serve_alone(runs, live_port or port + 1)
    else:
        raise typer.Exit(open_ui(runs_dir, port=port, beside=lambda: start_live_page(runs, live_port, beside=port)))


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG|DIRECTORY]",
            help="Preset or YAML file whose experts are to find a place; or the directory of a run, a study, an "
            "expert, an ensemble or prepared data, whose files are compared with their checksums.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    store: Store = None,
    storage: StorageOption = None,
) -> None:
    """Say what is wrong with this machine or cluster, or with the files of a directory, and how to fix it."""
    from workloads.config.load import load_config
    from workloads.presets import list_presets

    if config is not None and config not in list_presets() and Path(config).is_dir():
        raise typer.Exit(0 if _tell(_examined(Path(config))) else 1)
    loaded = None if config is None else load_config(config, overrides or ())
    environment.prepare_ray_environment(address)
    from orchestrator.runs.doctor import examine

    raise typer.Exit(0 if _tell(examine(runs_dir, address, config=loaded, store=store, storage=storage)) else 1)


def _examined(path: Path) -> "Iterable[Finding]":
    """Findings about a directory. ConfigError if it is none of ours."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.runs.damage import examine_directory, is_examined
    from orchestrator.search.study.damage import examine_study
    from workloads.errors import ConfigError

    study = RunsDir(path.absolute().parent.parent).study(path.absolute().name)
    if study.path == path.absolute() and (study.description_file.exists() or study.trial_files()):
        return examine_study(path)
    if not is_examined(path):
        raise ConfigError(f"{path} is no directory of a run, a study, an expert, an ensemble or prepared data")
    return examine_directory(path)


def _tell(findings: "Iterable[Finding]") -> bool:
    """Whether nothing is wrong."""
    from orchestrator.terminal.tables import print_finding

    all_ok = True
    for finding in findings:
        print_finding(finding.subject, finding.text, is_ok=finding.is_ok)
        all_ok = all_ok and finding.is_ok
    return all_ok

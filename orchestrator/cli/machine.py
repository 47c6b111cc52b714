"""Commands about this machine: ui, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import RUNS, Address, AsJson, Overrides, RunsDirOption, StorageOption, Store
from orchestrator.cli.results import print_json
from orchestrator.execution import environment
from orchestrator.terminal.notes import print_beginning

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
            "expert, an ensemble or prepared data, whose files are compared with their checksums; or the name of a run "
            "or a study, here or with --storage there.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    store: Store = None,
    storage: StorageOption = None,
    json: AsJson = False,
) -> None:
    """Say what is wrong with this machine or cluster, or with the files of a directory, and how to fix it."""
    print_beginning("doctor")
    from workloads.config.load import load_config

    files = None if config is None else _findings_of_files(config, runs_dir, storage)
    if files is not None:
        raise typer.Exit(0 if _tell(files, as_json=json) else 1)
    loaded = None if config is None else load_config(config, overrides or ())
    environment.prepare_ray_environment(address)
    from orchestrator.runs.doctor import examine

    findings = examine(runs_dir, address, config=loaded, store=store, storage=storage)
    raise typer.Exit(0 if _tell(findings, as_json=json) else 1)


def _findings_of_files(named: str, runs_dir: Path, storage: str | None) -> "Iterable[Finding] | None":
    """Of a directory, or of a run or a study by its name, here or in a storage; None of a run description."""
    from workloads.config.load import is_file
    from workloads.presets import list_presets

    if named in list_presets() or is_file(named):
        return None
    if Path(named).is_dir():
        return _examined(Path(named))
    if storage is not None:
        from orchestrator.runs.damage import examine_in_storage
        from orchestrator.store.storage import Storage

        return examine_in_storage(Storage.at(storage), named)
    from orchestrator.plan.places import RunsDir
    from orchestrator.runs.stored import find_planned

    runs = RunsDir(runs_dir)
    if "/" in named:
        return None
    below = [folder for folder in (runs.path / named, runs.studies / named) if folder.is_dir()]
    if not below and (run := find_planned(named, runs)) is not None:
        below = [run.path]
    return _examined(below[0]) if below else None


def _examined(path: Path) -> "Iterable[Finding]":
    """Findings about a directory. ConfigError if it is none of ours."""
    from orchestrator.plan.places import RunsDir
    from orchestrator.runs.damage import examine_directory, is_examined
    from orchestrator.search.study.damage import examine_study
    from workloads.errors import ConfigError

    if is_examined(path):
        return examine_directory(path)
    study = RunsDir(path.absolute().parent.parent).study(path.absolute().name)
    if study.path == path.absolute() and (study.description_file.exists() or study.trial_files()):
        return examine_study(path)
    raise ConfigError(f"{path} is no directory of a run, a study, an expert, an ensemble or prepared data")


def _tell(findings: "Iterable[Finding]", *, as_json: bool) -> bool:
    """Whether nothing is wrong."""
    if as_json:
        found = [finding._asdict() for finding in findings]
        print_json(found)
        return all(finding["is_ok"] for finding in found)
    from orchestrator.terminal.tables import print_finding

    all_ok = True
    for finding in findings:
        print_finding(finding.subject, finding.text, is_ok=finding.is_ok)
        all_ok = all_ok and finding.is_ok
    return all_ok

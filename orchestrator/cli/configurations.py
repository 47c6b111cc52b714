"""Commands about run descriptions: presets, plan, train, compare, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import (
    RUNS,
    Address,
    AsJson,
    OptionalAnyConfig,
    OptionalConfig,
    Overrides,
    RunPath,
    RunsDirOption,
    RunStorage,
    StorageOption,
    Store,
    WithJson,
)
from orchestrator.cli.complete import complete_comparison, complete_protocol
from orchestrator.cli.results import of_outcome, of_table, print_json, telling
from orchestrator.cli.teaching import teach
from orchestrator.execution import environment
from orchestrator.terminal.notes import print_beginning, print_note

if TYPE_CHECKING:
    from workloads.config.comparison import Comparison


def presets(json: AsJson = False) -> None:
    """List the presets with their first line, by the command that takes them."""
    from workloads.presets import list_presets, summary_of

    found = {
        command: {name: summary_of(name, folder) for name in list_presets(folder)}
        for command, folder in (("train", ""), ("compare", "comparisons"), ("search", "studies"))
    }
    if json:
        print_json(
            [
                {"command": command, "name": name, "says": says}
                for command in found
                for name, says in found[command].items()
            ]
        )
        return
    for command, names in found.items():
        print(f"rememe {command}")
        for name, says in names.items():
            print(f"  {name:24} {says}")


def plan(
    config: OptionalAnyConfig = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    json: AsJson = False,
) -> None:
    """Show what would run: jobs, parameters, multiply-adds, memory, keys. Trains nothing; data is prepared, once.

    CONFIG may be a study (search-ratios): how many configurations, and how many experts they share. Or a comparison
    (meme-table1): each row's sizes, beside the paper's. Without the data, sizes are shown as configured; where content
    keys are missing for it, the exit code is 2.
    """
    if config is None:
        teach("plan", "", "comparisons", "studies")
    print_beginning(f"plan {config}")
    from orchestrator.search.study.find import find_study

    # A study first, for its name would be unknown to load_config.
    study = find_study(config, overrides or [])
    if study is not None:
        from orchestrator.search.running.display import plan_study

        plan_study(study, runs_dir, as_json=json)
        return
    from workloads.config.load import find_comparison, load_config

    comparison = find_comparison(config, overrides or ())
    if comparison is not None:
        _plan_comparison(comparison, runs_dir, as_json=json)
        return
    loaded = load_config(config, overrides or ())
    from orchestrator.runs.data import plan_as_far_as_known, require_data
    from orchestrator.terminal.tables import print_plan

    found = plan_as_far_as_known(loaded, runs_dir)
    if json:
        print_json(found.to_json())
    else:
        print_plan(found)
    require_data(loaded, runs_dir)


def _plan_comparison(comparison: "Comparison", runs_dir: Path, *, as_json: bool) -> None:
    from orchestrator.runs.comparing.plan import print_rows
    from orchestrator.runs.comparing.rows import plan_rows
    from orchestrator.runs.data import why_no_data

    rows = plan_rows(comparison, runs_dir)
    if as_json:
        print_json({"name": comparison.name, "rows": [row.to_json() for row in rows]})
    else:
        print_rows(comparison, rows)
    # No keys are shown of a comparison, so what was asked for has been said.
    if why := why_no_data(comparison.base_run(comparison.seeds[0]), runs_dir):
        print_note(f"{why}. Sizes are shown as configured")


def train(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    evaluate: Annotated[bool, typer.Option(help="Sample and score when training is done.")] = True,
    store: Store = None,
    storage: StorageOption = None,
    json: WithJson = False,
) -> None:
    """Train every expert in parallel, gather the ensemble, score it. The same command again resumes."""
    if config is None:
        teach("train", "")
    import rememe

    loaded = rememe.load_config(config, overrides or ())
    print_beginning(f"train {config}")
    with telling(as_json=json):
        outcome = rememe.train(
            loaded, runs_dir=runs_dir, address=address, evaluate=evaluate, store=store, storage=storage
        )
    if json:
        print_json(of_outcome(outcome))


def compare(
    comparison: Annotated[
        str | None,
        typer.Argument(
            metavar="COMPARISON",
            help="A comparison's name (demo) or YAML file.",
            show_default=False,
            autocompletion=complete_comparison,
        ),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    storage: StorageOption = None,
    json: WithJson = False,
) -> None:
    """Train and score several strategies, same budget and protocol, and print the table.

    Rows start from the base's weights, or from their own or none with an architecture of their own. What it would
    take, and the paper's figures: rememe plan COMPARISON. The same command again goes on where it stopped.
    """
    if comparison is None:
        teach("compare", "comparisons")
    from workloads.config.load import load_comparison

    loaded = load_comparison(comparison, overrides or ())
    print_beginning(f"compare {comparison}")
    environment.prepare_ray_environment(address)
    from orchestrator.runs.comparing.comparison import run_comparison

    with telling(as_json=json):
        run_comparison(loaded, runs_dir, address=address, storage=storage)
    if json:
        from orchestrator.plan.places import RunsDir

        print_json(of_table(RunsDir(runs_dir).table(loaded.name)))


def evaluate(
    run: RunPath,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="fid50k, fid10k, fid2k, demo; default: the run's own.",
            show_default=False,
            autocompletion=complete_protocol,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one field, for instance num_samples=2000.")
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    storage: RunStorage = None,
    json: WithJson = False,
) -> None:
    """Score a trained ensemble under a named protocol and log it to MLflow."""
    print_beginning(f"evaluate {run}")
    import rememe

    with telling(as_json=json):
        score = rememe.evaluate(
            run, protocol=protocol, overrides=overrides or (), runs_dir=runs_dir, address=address, storage=storage
        )
    if json:
        print_json(vars(score))

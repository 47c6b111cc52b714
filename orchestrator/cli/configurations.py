"""Commands about run descriptions: presets, plan, train, compare, evaluate."""

from typing import Annotated

import typer

from orchestrator.cli.arguments import (
    RUNS,
    Address,
    AsJson,
    Config,
    Overrides,
    RunPath,
    RunsDirOption,
    RunStorage,
    StorageOption,
    Store,
)
from orchestrator.execution import environment


def presets() -> None:
    """List the presets with their first line, by the command that takes them."""
    from workloads.presets import list_presets, text_of

    for command, folder in (("train", ""), ("compare", "comparisons"), ("search", "studies")):
        print(f"rememe {command}")
        for name in list_presets(folder):
            print(f"  {name:24} {text_of(name, folder).splitlines()[0].lstrip('# ')}")


def plan(
    config: Config,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    json: AsJson = False,
) -> None:
    """Show what would run: jobs, parameters, multiply-adds, memory, keys. Starts nothing.

    CONFIG may be a study (search-ratios): how many configurations, and how many experts they share. Or a comparison
    (meme-table1): each row's sizes, beside the paper's.
    """
    # `json` is the option here.
    from json import dumps as to_text

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
        from orchestrator.runs.comparison_plan import plan_comparison

        plan_comparison(comparison, runs_dir, as_json=json)
        return
    loaded = load_config(config, overrides or ())
    from orchestrator.runs.data import plan_as_far_as_known
    from orchestrator.terminal.tables import print_plan

    found = plan_as_far_as_known(loaded, runs_dir)
    if json:
        print(to_text(found.to_json(), indent=2))
    else:
        print_plan(found)


def train(
    config: Config,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    evaluate: Annotated[bool, typer.Option(help="Sample and score when training is done.")] = True,
    store: Store = None,
    storage: StorageOption = None,
) -> None:
    """Train every expert in parallel, gather the ensemble, score it. The same command again resumes."""
    from workloads.config.load import load_config

    loaded = load_config(config, overrides or ())
    # Before what comes next imports Ray, which reads its environment then.
    environment.prepare_ray_environment(address)
    from orchestrator.runs.configuration import train_configuration

    train_configuration(loaded, runs_dir, address=address, evaluate=evaluate, store=store, storage=storage)


def compare(
    comparison: Annotated[str, typer.Argument(help="A comparison's name (demo) or YAML file.", show_default=False)],
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    storage: StorageOption = None,
) -> None:
    """Train and score several strategies, same budget and protocol, and print the table: rememe compare demo

    Rows start from the base's weights, or from their own or none with an architecture of their own. What it would
    take, and the paper's figures: rememe plan COMPARISON. The same command again goes on where it stopped.
    """
    from workloads.config.load import load_comparison

    loaded = load_comparison(comparison, overrides or ())
    environment.prepare_ray_environment(address)
    from orchestrator.runs.comparison import run_comparison

    run_comparison(loaded, runs_dir, address=address, storage=storage)


def evaluate(
    run: RunPath,
    protocol: Annotated[
        str | None, typer.Option(help="fid50k, fid10k, fid2k, demo; default: the run's own.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one field, for instance num_samples=2000.")
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    storage: RunStorage = None,
) -> None:
    """Score a trained ensemble under a named protocol and log it to MLflow."""
    environment.prepare_ray_environment(address)
    from orchestrator.runs.configuration import evaluate_run
    from orchestrator.runs.stored import run_at_hand

    with run_at_hand(run, runs_dir, storage, is_changed=True) as folder:
        evaluate_run(folder, runs_dir, protocol=protocol, overrides=overrides or (), address=address, storage=storage)

"""Commands about studies: search, report."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.arguments import (
    RUNS,
    Address,
    Overrides,
    RunsDirOption,
    StandingStorage,
    StorageOption,
    Store,
    WithJson,
)
from orchestrator.cli.complete import complete_run, complete_study
from orchestrator.cli.results import of_trials, print_json, telling
from orchestrator.cli.teaching import teach
from orchestrator.terminal.notes import print_beginning


def search(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="A study's name (demo-search) or YAML file.",
            show_default=False,
            autocompletion=complete_study,
        ),
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDirOption = RUNS,
    address: Address = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Configurations that may fail.")] = 0,
    plan_from: Annotated[
        str | None,
        typer.Option(
            help="An earlier study: look first at what the losses of its experts predict to be best.",
            show_default=False,
        ),
    ] = None,
    num_planned: Annotated[int, typer.Option(min=1, help="How many configurations --plan-from proposes.")] = 3,
    store: Store = None,
    storage: StorageOption = None,
    json: WithJson = False,
) -> None:
    """Search boundaries, architectures and numbers of experts, each expert trained once; again = go on.

    See first what it would take: rememe plan STUDY. Read afterwards what came out: rememe report STUDY.
    """
    if study is None:
        teach("search", "studies")
    import rememe
    from orchestrator.search.study.find import require_study

    found = require_study(study, overrides or [])
    print_beginning(f"search {study}")
    with telling(as_json=json):
        trials = rememe.search(
            found,
            runs_dir=runs_dir,
            address=address,
            max_failures=max_failures,
            plan_from=plan_from,
            num_planned=num_planned,
            store=store,
            storage=storage,
        )
    if json:
        print_json(of_trials(trials))


def report(
    named: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|COMPARISON|RUN",
            help="What has been searched, compared or trained, by its name; a run also by its directory.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file; default: report.html of the study or the run, COMPARISON.html in --runs-dir.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDirOption = RUNS,
    storage: StandingStorage = None,
) -> None:
    """Write one HTML page, whole in itself: what was tried, what won and why; or one run's score, samples and experts.

    Every figure comes with its numbers as CSV, tables sort, and nothing is loaded: the page can be sent as it is.
    """
    print_beginning(f"report {named}")
    from orchestrator.runs.surroundings import require_makeable

    require_makeable(out)
    from orchestrator.search.report.find import bring_reported, write_report_of

    if storage is not None:
        named = bring_reported(named, runs_dir, storage)
    print(write_report_of(named, runs_dir, out))

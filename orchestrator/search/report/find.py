"""`rememe report`: which of the pages a name asks for."""

from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.runs.stored import find_planned
from orchestrator.search.study.ledger import list_studies
from orchestrator.search.study.stored import bring_study
from orchestrator.store.storage import Storage
from workloads.errors import ConfigError

MAX_NAMED = 5
"""In an error message."""


def write_report_of(named: str, runs_dir: Path, out: Path | None) -> Path:
    """Write the page about a study, a comparison or a run, looked for in this order, and return where it is.

    ConfigError that says what there is, if there is no such thing.
    """
    # Each where it is needed: what one of them imports takes seconds.
    runs = RunsDir(runs_dir)
    is_name = "/" not in named
    if is_name and named in list_studies(runs):
        from orchestrator.search.report.page import write_report

        return write_report(runs_dir, named, out)
    if is_name and runs.table(named).is_file():
        from orchestrator.search.report.comparison_page import write_comparison_report

        return write_comparison_report(named, runs_dir, out)
    run = find_planned(named, runs)
    if run is not None:
        from orchestrator.search.report.run_page import write_run_report

        return write_run_report(run, out)
    known = [*list_studies(runs), *(run.path.name for run in runs.all_plans())]
    have = (
        f"there: {', '.join(known[:MAX_NAMED])}" if known else "nothing has been run there; try: rememe train demo-meme"
    )
    raise ConfigError(f"no study, comparison or run {named!r} under {runs.shown}; {have}")


def bring_reported(named: str, runs_dir: Path, storage: str) -> str:
    """Have here what lies in a storage of a study or a run; returns the name by which it is found here.

    ConfigError if there is neither.
    """
    runs, kept = RunsDir(runs_dir), Storage.at(storage)
    if "/" not in named and (named in kept.study_names() or runs.study(named).description_file.exists()):
        bring_study(named, runs, kept)
        return named
    run = runs.run_named(kept.name_of(named))
    kept.restore_run(run)
    return str(run.path)

"""Tables: a plan, and what came of it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from orchestrator.plan.jobs import Plan, PlannedJob
from orchestrator.plan.masking import masked
from orchestrator.plan.policies import as_ray_resources
from orchestrator.store.inventory import StoreEntry, told_of
from orchestrator.terminal.words import duration, si

if TYPE_CHECKING:
    from workloads.evaluation.protocol import Score


WIDTH = 1000
"""No table is as wide; each is as wide as what is in it."""


def wide_console() -> Console:
    """Standard output; a table is not squeezed: a narrow terminal wraps its lines, and no number is cut off."""
    return Console(width=max(Console().width, WIDTH), soft_wrap=True)


def live_console() -> Console:
    """For what a terminal redraws in place, which must fit into it; elsewhere the wide one."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else wide_console()


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, title_justify="left")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


JOB_COLUMNS = ("job", "interval", "own", "network")
COST_COLUMNS = ("params", "MACs", "memory")


def print_plan(plan: Plan) -> None:
    """A row per job and the sums."""
    count = f"{len(plan.jobs)} jobs" if len(plan.jobs) > 1 else "1 job"
    title = f"{plan.config.name}: {plan.config.strategy.kind}, {count}"
    table = _table(title, JOB_COLUMNS, (*COST_COLUMNS, "images", "needs", "key"))
    for job in plan.jobs:
        table.add_row(*_job_cells(job), *_plan_cells(job))
    console = wide_console()
    console.print(table)
    console.print(
        f"stored {si(plan.num_parameters)} parameters, {si(plan.num_active_parameters)} active per step; "
        f"training takes about {si(plan.expected_macs)} MACs"
    )


def _job_cells(job: PlannedJob) -> list[str]:
    own = job.share
    sizes = [si(job.num_parameters), si(job.macs), f"{si(job.memory_bytes)}B"]
    return [job.name, str(job.interval), own, job.job.model.kind, *sizes]


def _plan_cells(job: PlannedJob) -> list[str]:
    resources = job.resources
    amounts = as_ray_resources(resources.model_copy(update={"accelerator_type": None}))
    wanted = [f"{amount:g} {name}" for name, amount in amounts.items()]
    wanted += [resources.accelerator_type] if resources.accelerator_type else []
    wanted += [f"{name}={value}" for name, value in resources.label_selector.items()]
    needs = ", ".join(wanted)
    few = f"{job.fewest_workers} to " if job.fewest_workers < job.num_workers else ""
    needs = f"{few}{job.num_workers} x ({needs})" if job.num_workers > 1 else needs
    key = job.key if job.job.data.fingerprint else "unknown"
    return [f"{job.job.training.images:,}", needs, key]


def print_result(
    plan: Plan,
    score: "Score | None",
    *,
    grid: Path | None,
    run_dir: Path,
    runs_dir: Path,
    url: str,
    losses: Sequence[float],
    elapsed_s: float,
    kept_in: str | None = None,
) -> None:
    """The table at the end: experts, score, and where to look."""
    table = _table(plan.config.name, JOB_COLUMNS, (*COST_COLUMNS, "loss"))
    for job, loss in zip(plan.jobs, losses, strict=True):
        table.add_row(*_job_cells(job), f"{loss:.4f}")
    console = wide_console()
    console.print(table)
    if score is not None:
        console.print(
            f"{score.name} = [bold]{score.value:.3f}[/bold]{score.half_width}   (protocol {score.protocol['name']}, "
            f"{score.num_samples:,} samples, hash {score.protocol_hash[:8]}; compare only under the same hash)"
        )
        if score.warning:
            console.print(f"[bold red]{score.warning}[/bold red]")
        if score.other_words:
            console.print(f"also         {', '.join(score.other_words)}")
        console.print(f"samples      {grid}")
    console.print(f"run          {run_dir}")
    if kept_in is not None:
        console.print(f"kept in      {kept_in}", markup=False)
    console.print(f"MLflow       {url}")
    console.print(f"             open it with: rememe ui{'' if str(runs_dir) == 'runs' else f' --runs-dir {runs_dir}'}")
    console.print(f"took         {duration(elapsed_s)}")


def print_store(place: str, entries: Sequence[StoreEntry]) -> None:
    """A row per key."""
    table = Table(title=f"{place}: {len(entries)} jobs, {si(sum(entry.num_bytes for entry in entries))}B")
    for column in ("key", "state", "job", "interval", "network"):
        table.add_column(column, no_wrap=True)
    for column in ("images", "loss", "size", "used by", "last written"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        size = f"{si(entry.num_bytes)}B"
        age = "" if entry.age_s is None else f"{duration(entry.age_s)} ago"
        users = "" if entry.num_users is None else str(entry.num_users)
        table.add_row(entry.key, entry.state, *told_of(entry), size, users, age)
    wide_console().print(table)


def print_finding(subject: str, text: str, *, is_ok: bool) -> None:
    """One line of a check-up."""
    console = Console(soft_wrap=True, highlight=False)
    mark = "[green]ok     [/green]" if is_ok else "[bold red]problem[/bold red]"
    console.print(f"{mark} {subject:12} ", end="")
    # Findings name rememe[inception], of which markup would leave rememe.
    console.print(masked(text), markup=False)


def print_jobs(rows: Sequence[tuple[str, str, float | None, str]]) -> None:
    """Id, status, begin in seconds since 1970 and command of each job."""
    table = Table(box=SIMPLE)
    for name in ("job", "status", "begun", "command"):
        table.add_column(name, no_wrap=True)
    for job_id, status, started_s, command in rows:
        begun = "" if started_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started_s))
        table.add_row(job_id, status.lower(), begun, masked(command))
    wide_console().print(table)

"""What the user sees in the terminal: the plan, live progress, the result."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.plan.jobs import Plan, PlannedJob
from orchestrator.plan.policies import as_ray_resources
from workloads.training.records import TrainingRecord

if TYPE_CHECKING:
    from workloads.evaluation.score import Score

PLAIN_INTERVAL_S = 10.0
"""How often an expert is reported where the output is a log rather than a terminal."""

STYLES = {
    "training": "cyan",
    "restarting": "yellow",
    "done": "green",
    "reused": "green",
    "elsewhere": "magenta",
    "failed": "bold red",
    "stopped": "yellow",
}
ENDED = {"done", "reused", "failed", "stopped"}


def print_note(text: str) -> None:
    """A remark on stderr, so that --json on stdout stays whole."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def progress(title: str, unit: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields advance(done, total). Nothing is shown if nothing is to be done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = None

    def advance(done: int, total: int) -> None:
        nonlocal task
        if not shown:
            return
        if task is None:
            bar.start()
            task = bar.add_task(title, total=total)
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()


def wide_console() -> Console:
    """Standard output; tables are not squeezed where no terminal sets the width."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=160, soft_wrap=True)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, title_justify="left")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


JOB_COLUMNS = ("job", "interval", "own", "network")
COST_COLUMNS = ("params", "MACs", "memory")


def print_plan(planned: Plan) -> None:
    """A row per job and the sums."""
    count = f"{len(planned.jobs)} jobs" if len(planned.jobs) > 1 else "1 job"
    title = f"{planned.config.name}: {planned.config.strategy.kind}, {count}"
    table = _table(title, JOB_COLUMNS, (*COST_COLUMNS, "images", "needs", "key"))
    for job in planned.jobs:
        table.add_row(*_job_cells(job), *_plan_cells(job))
    console = wide_console()
    console.print(table)
    total = sum(job.num_parameters for job in planned.jobs)
    active = max(job.num_active_parameters for job in planned.jobs)
    training = sum(job.expected_macs for job in planned.jobs)
    console.print(
        f"stored {si(total)} parameters, {si(active)} active per step; training takes about {si(training)} MACs"
    )


def _job_cells(job: PlannedJob) -> list[str]:
    own = job.share
    sizes = [si(job.num_parameters), si(job.macs), f"{si(job.memory_bytes)}B"]
    return [job.name, str(job.interval), own, job.job.model.kind, *sizes]


def _plan_cells(job: PlannedJob) -> list[str]:
    needs = ", ".join(f"{amount:g} {name}" for name, amount in as_ray_resources(job.resources).items())
    needs = f"{job.num_workers} x ({needs})" if job.num_workers > 1 else needs
    key = job.key if job.job.data.fingerprint else "unknown"
    return [f"{job.job.training.images:,}", needs, key]


def si(value: float) -> str:
    """Four significant digits with an SI prefix: 274.1 M, 96.05 G."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g} "


def duration(seconds: float) -> str:
    """1:05, or 2:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class _Row:
    """One expert as shown; only its latest record is kept."""

    planned: PlannedJob
    state: str = "queued"
    detail: str = ""
    latest: TrainingRecord | None = None
    images_per_s: float = 0.0
    printed_s: float = 0.0

    @property
    def total_images(self) -> int:
        return self.planned.job.training.images

    @property
    def images_seen(self) -> int:
        if self.state in {"done", "reused"}:
            return self.total_images
        return min(self.total_images, self.latest.images_seen) if self.latest else 0

    @property
    def remaining_s(self) -> float | None:
        if self.state in ENDED or not self.images_per_s:
            return None
        return (self.total_images - self.images_seen) / self.images_per_s


class LiveView:
    """A line per expert, redrawn in a terminal, printed now and then in a log. Listens to train_experts."""

    def __init__(self, jobs: Sequence[PlannedJob], console: Console | None = None) -> None:
        self._console = console or Console()
        self._rows = {planned.key: _Row(planned) for planned in jobs}
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._plain = not self._console.is_terminal

    def __enter__(self) -> "LiveView":
        if not self._plain:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._live.stop()

    def on_state(self, key: str, state: str, detail: str = "") -> None:
        """Show the new state; print it where nothing is redrawn."""
        row = self._rows[key]
        row.state, row.detail = state, detail
        if self._plain:
            self._print(f"{row.planned.name} {row.planned.interval}: {state}{f' ({detail})' if detail else ''}")

    def on_records(self, key: str, records: Sequence[TrainingRecord]) -> None:
        """Show the newest record."""
        row = self._rows[key]
        row.latest = records[-1]
        row.images_per_s = records[-1].images_per_s
        now_s = time.monotonic()
        if self._plain and now_s - row.printed_s > PLAIN_INTERVAL_S:
            row.printed_s = now_s
            remaining = "" if row.remaining_s is None else f", {duration(row.remaining_s)} left"
            self._print(
                f"{row.planned.name}: {row.images_seen:,} of {row.total_images:,} images, loss {row.latest.loss:.4f}, "
                f"{row.images_per_s:.0f} images/s{remaining}"
            )

    def _print(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("expert", "interval", "state"):
            table.add_column(name, no_wrap=True)
        table.add_column("", width=20)
        for name in ("images", "loss", "images/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows.values():
            table.add_row(
                row.planned.name,
                str(row.planned.interval),
                Text(row.state, STYLES.get(row.state, "dim")),
                ProgressBar(total=row.total_images, completed=row.images_seen),
                f"{row.images_seen:,}",
                f"{row.latest.loss:.4f}" if row.latest else "",
                f"{row.images_per_s:.0f}" if row.images_per_s and row.state not in ENDED else "",
                "" if row.remaining_s is None else duration(row.remaining_s),
            )
        ended = sum(row.state in ENDED for row in self._rows.values())
        return Group(
            table, Text(f"{ended} of {len(self._rows)} experts ended; Ctrl-C writes checkpoints and stops", "dim")
        )


def print_result(
    planned: Plan,
    score: "Score | None",
    *,
    grid: Path | None,
    run_dir: Path,
    runs_dir: Path,
    url: str,
    losses: Sequence[float],
    elapsed_s: float,
) -> None:
    """The table at the end: experts, score, and where to look."""
    table = _table(planned.config.name, JOB_COLUMNS, (*COST_COLUMNS, "loss"))
    for job, loss in zip(planned.jobs, losses, strict=True):
        table.add_row(*_job_cells(job), f"{loss:.4f}")
    console = wide_console()
    console.print(table)
    if score is not None:
        console.print(
            f"{score.name} = [bold]{score.value:.3f}[/bold]   (protocol {score.protocol['name']}, "
            f"{score.num_samples:,} samples, hash {score.protocol_hash[:8]}; compare only under the same hash)"
        )
        console.print(f"samples      {grid}")
    console.print(f"run          {run_dir}")
    console.print(f"MLflow       {url}")
    console.print(f"             open it with: rememe ui{'' if str(runs_dir) == 'runs' else f' --runs-dir {runs_dir}'}")
    console.print(f"took         {duration(elapsed_s)}")

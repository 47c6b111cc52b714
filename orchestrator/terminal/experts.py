"""The experts of a run while they train: redrawn in a terminal, printed now and then in a log."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.plan.events import Checkpointed, ExpertEvent, ExpertState, Progressed
from orchestrator.plan.jobs import PlannedJob
from orchestrator.terminal.words import detail, duration
from workloads.training.records import TrainingRecord

PLAIN_INTERVAL_S = 10.0
"""How often an expert is reported where the output is a log rather than a terminal."""

STYLES = {
    ExpertState.TRAINING: "cyan",
    ExpertState.RESTARTING: "yellow",
    ExpertState.DONE: "green",
    ExpertState.REUSED: "green",
    ExpertState.ELSEWHERE: "magenta",
    ExpertState.FAILED: "bold red",
    ExpertState.STOPPED: "yellow",
}


@dataclass
class _ExpertRow:
    """One expert as shown; only its latest record is kept."""

    job: PlannedJob
    state: ExpertState = ExpertState.QUEUED
    latest: TrainingRecord | None = None
    images_per_s: float = 0.0
    printed_s: float = 0.0

    @property
    def total_images(self) -> int:
        return self.job.job.training.images

    @property
    def images_seen(self) -> int:
        if self.state.has_weights:
            return self.total_images
        # Whole batches: the last may go beyond the budget.
        return min(self.total_images, self.latest.images_seen) if self.latest else 0

    @property
    def remaining_s(self) -> float | None:
        if self.state.has_ended or not self.images_per_s:
            return None
        return (self.total_images - self.images_seen) / self.images_per_s


class ExpertsDisplay:
    """A line per expert. A listener of train_experts; use as a context manager."""

    def __init__(self, jobs: Sequence[PlannedJob], console: Console | None = None) -> None:
        self._console = console or Console()
        self._rows = {job.key: _ExpertRow(job) for job in jobs}
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._plain = not self._console.is_terminal

    def __enter__(self) -> "ExpertsDisplay":
        if not self._plain:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._live.stop()

    def __call__(self, event: ExpertEvent) -> None:
        """Show a new state or the newest record; print it where nothing is redrawn."""
        row = self._rows[event.key]
        if isinstance(event, Progressed):
            self._show_record(row, event.records[-1])
            return
        if isinstance(event, Checkpointed):
            return  # nobody waits for it
        row.state = event.state
        if self._plain:
            said = detail(event)
            self._print(f"{row.job.name} {row.job.interval}: {event.state.value}{f' ({said})' if said else ''}")

    def _show_record(self, row: _ExpertRow, record: TrainingRecord) -> None:
        row.latest, row.images_per_s = record, record.images_per_s
        now_s = time.monotonic()
        if self._plain and now_s - row.printed_s > PLAIN_INTERVAL_S:
            row.printed_s = now_s
            remaining = "" if row.remaining_s is None else f", {duration(row.remaining_s)} left"
            self._print(
                f"{row.job.name}: {row.images_seen:,} of {row.total_images:,} images, loss {record.loss:.4f}, "
                f"{row.images_per_s:.0f} images/s{remaining}"
            )

    def _print(self, text: str) -> None:
        # Not with rich, which breaks the lines of a log at 80 columns.
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
                row.job.name,
                str(row.job.interval),
                Text(row.state.value, STYLES.get(row.state, "dim")),
                ProgressBar(total=row.total_images, completed=row.images_seen),
                f"{row.images_seen:,}",
                f"{row.latest.loss:.4f}" if row.latest else "",
                f"{row.images_per_s:.0f}" if row.images_per_s and not row.state.has_ended else "",
                "" if row.remaining_s is None else duration(row.remaining_s),
            )
        ended = sum(row.state.has_ended for row in self._rows.values())
        return Group(
            table, Text(f"{ended} of {len(self._rows)} experts ended; Ctrl-C writes checkpoints and stops", "dim")
        )

"""A progress bar for work that takes a while; lines now and then where the output is a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.terminal.words import duration

PLAIN_INTERVAL_S = 10.0
"""How often work is reported where the output is a log: seldom enough to read, often enough to see that it lives."""


@contextmanager
def progress(
    title: str, unit: str, *, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields advance(done, total). Nothing is shown if nothing is to be done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console or Console(stderr=True))
    task, plain = None, _PlainLines(title, unit, bar.console)

    def advance(done: int, total: int) -> None:
        nonlocal task
        if not shown:
            return
        if task is None:
            bar.start()
            task = bar.add_task(title, total=total)
        bar.update(task, completed=done, total=total)
        plain.advance(done, total)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()


class _PlainLines:
    """Rich draws a bar in a log only when all is done; whoever follows a job wants to see that it moves."""

    def __init__(self, title: str, unit: str, console: Console) -> None:
        self._title, self._unit, self._console = title, unit, console
        self._started_s = self._printed_s = time.monotonic()
        self._done_before: int | None = None

    def advance(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._done_before is None:  # what an earlier call did took no time of this one
            self._done_before, self._started_s = done, now_s
        if self._console.is_terminal or now_s - self._printed_s < PLAIN_INTERVAL_S:
            return
        self._printed_s = now_s
        left = ""
        if done > self._done_before:
            left_s = (total - done) * (now_s - self._started_s) / (done - self._done_before)
            left = f", {duration(left_s)} left"
        print(f"{self._title}: {done:,} of {total:,} {self._unit}{left}", file=self._console.file, flush=True)

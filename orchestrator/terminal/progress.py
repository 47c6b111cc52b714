"""A progress bar for work that takes a while; lines now and then where the output is a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.plan.masking import masked
from orchestrator.terminal.words import duration, timestamp

PLAIN_INTERVAL_S = 10.0
"""How often work is reported where the output is a log: seldom enough to read, often enough to see that it lives."""

FIRST_AFTER_S = 2.0
"""When a log hears for the first time of work that is not done by then."""

SILENCE_S = 60.0
"""After so long the line before is said again: it lives, and has come no further."""

ProgressListener = Callable[[str, int, int], None]
"""Hears what is done, how much of it and of how much."""


def print_line(text: str, console: Console) -> None:
    """A line of a log, with the time."""
    # Not with rich, which breaks the lines of a log at 80 columns.
    print(f"{timestamp()} {masked(text)}", file=console.file, flush=True)


@contextmanager
def progress(
    title: str,
    unit: str,
    *,
    shown: bool = True,
    console: Console | None = None,
    listener: ProgressListener | None = None,
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
    console = console or Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task, plain = None, _PlainLines(title, unit, console)

    def advance(done: int, total: int) -> None:
        nonlocal task
        if listener is not None:
            listener(title, done, total)
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
        plain.finish()


@contextmanager
def counting(title: str, unit: str, total: int) -> Iterator[Callable[[], None]]:
    """The same for work that is done one by one; yields what is to be called after each."""
    num_done = count(1)
    with progress(title, unit) as advance:
        advance(0, total)
        yield lambda: advance(next(num_done), total)


class _PlainLines:
    """Rich draws a bar in a log only when all is done; whoever follows a job wants to see that it moves.

    Lines come from a thread of their own too, for a first batch may take a minute. The last says how far it came,
    whatever it ended by.
    """

    def __init__(self, title: str, unit: str, console: Console) -> None:
        self._title, self._unit, self._console = title, unit, console
        self._begun_s = self._started_s = time.monotonic()
        self._next_s = self._started_s + FIRST_AFTER_S
        self._done_before: int | None = None
        self._last: tuple[int, int] | None = None
        """What is done and of how much; None before the first word of it."""

        self._is_told = False
        self._lock, self._over = threading.Lock(), threading.Event()
        if not console.is_terminal:
            threading.Thread(target=self._keep_telling, name=f"tells of {title}", daemon=True).start()

    def finish(self) -> None:
        """Say how far it came, if the lines before have not."""
        self._over.set()
        with self._lock:
            if self._last is None or self._is_told or self._console.is_terminal:
                return
            took = duration(time.monotonic() - self._begun_s)
            self._print(f", took {took}")

    def advance(self, done: int, total: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            if self._done_before is None:  # what an earlier call did took no time of this one
                self._done_before, self._started_s = done, now_s
            self._is_told, self._last = self._is_told and self._last == (done, total), (done, total)
            self._tell_if_due(now_s)

    def _keep_telling(self) -> None:
        while not self._over.wait(FIRST_AFTER_S):
            with self._lock:
                if not self._over.is_set():
                    self._tell_if_due(time.monotonic())

    def _tell_if_due(self, now_s: float) -> None:
        # That all is done is told by finish().
        if self._last is None or self._console.is_terminal or self._last[0] >= self._last[1]:
            return
        if now_s < self._next_s + (SILENCE_S - PLAIN_INTERVAL_S if self._is_told else 0.0):
            return
        done, total = self._last
        self._next_s, left = now_s + PLAIN_INTERVAL_S, ""
        if self._done_before is not None and done > self._done_before:
            left_s = (total - done) * (now_s - self._started_s) / (done - self._done_before)
            left = f", {duration(left_s)} left"
        self._print(left)

    def _print(self, end: str) -> None:
        assert self._last is not None
        done, total = self._last
        self._is_told = True
        print_line(f"{self._title}: {done:,} of {total:,} {self._unit}{end}", self._console)

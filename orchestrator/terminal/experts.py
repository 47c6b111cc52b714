"""The experts of a run while they train: redrawn in a terminal, printed now and then in a log."""

import threading
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.plan.events import Checkpointed, ExpertEvent, ExpertState, Progressed
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.standing import ExpertStanding
from orchestrator.terminal.progress import SILENCE_S, print_line
from orchestrator.terminal.words import detail, duration

PLAIN_INTERVAL_S = 10.0
"""How often an expert is reported where the output is a log rather than a terminal."""

MAX_NAMED = 4
"""Experts that a line after a silence names."""

MEASURED = "its loss by timestep is measured"
"""What is done with an expert after its last image, for up to minutes."""

STYLES = {
    ExpertState.TRAINING: "cyan",
    ExpertState.RESTARTING: "yellow",
    ExpertState.DONE: "green",
    ExpertState.REUSED: "green",
    ExpertState.ELSEWHERE: "magenta",
    ExpertState.FAILED: "bold red",
    ExpertState.STOPPED: "yellow",
}


class ExpertsDisplay:
    """A line per expert. A listener of train_experts; use as a context manager."""

    def __init__(self, jobs: Sequence[PlannedJob], console: Console | None = None) -> None:
        self._console = console or Console()
        self._experts = {job.key: ExpertStanding.of(job) for job in jobs}
        self._printed_s = dict.fromkeys(self._experts, 0.0)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._plain = not self._console.is_terminal
        self._spoke_s, self._over = time.monotonic(), threading.Event()

    def __enter__(self) -> "ExpertsDisplay":
        if self._plain:
            threading.Thread(target=self._break_silence, name="tells of experts", daemon=True).start()
        else:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self._plain:
            self._live.stop()

    def __call__(self, event: ExpertEvent) -> None:
        """Show a new state or the newest record; print it where nothing is redrawn."""
        expert = self._experts[event.key] = self._experts[event.key].after(event, time.time())
        if not self._plain or isinstance(event, Checkpointed):  # nobody waits for a checkpoint
            return
        if isinstance(event, Progressed):
            self._print_progress(expert)
            return
        said = detail(event)
        self._print(f"{expert.name} {expert.interval}: {event.state.value}{f' ({said})' if said else ''}")

    def _print_progress(self, expert: ExpertStanding) -> None:
        now_s = time.monotonic()
        is_last = expert.images_seen >= expert.total_images
        if is_last or now_s - self._printed_s[expert.key] > PLAIN_INTERVAL_S:
            self._printed_s[expert.key] = now_s
            remaining = "" if expert.remaining_s is None else f", {duration(expert.remaining_s)} left"
            if is_last:
                remaining = f"; {MEASURED}"
            self._print(
                f"{expert.name}: {expert.images_seen:,} of {expert.total_images:,} images, loss {expert.loss:.4f}, "
                f"{expert.images_per_s:.0f} images/s{remaining}"
            )

    def _print(self, text: str) -> None:
        self._spoke_s = time.monotonic()
        print_line(text, self._console)

    def _break_silence(self) -> None:
        """Say what is waited for: a place, another command, a process that starts."""
        while not self._over.wait(max(0.0, self._spoke_s + SILENCE_S - time.monotonic())):
            if time.monotonic() >= self._spoke_s + SILENCE_S:
                going = [one for one in self._experts.values() if not one.state.has_ended]
                states = [f"{one.name} {_state_words(one)}" for one in going[:MAX_NAMED]]
                more = f", and {len(going) - MAX_NAMED} more" if len(going) > MAX_NAMED else ""
                self._print(
                    f"{len(self._experts) - len(going)} of {len(self._experts)} ended; {', '.join(states)}{more}"
                )

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("expert", "interval"):
            table.add_column(name, no_wrap=True)
        # In a narrow terminal words are broken before a number is cut off.
        table.add_column("state")
        table.add_column("", min_width=4, max_width=20)
        for name in ("images", "loss", "images/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for expert in self._experts.values():
            table.add_row(
                expert.name,
                str(expert.interval),
                Text(_state_words(expert), STYLES.get(expert.state, "dim")),
                ProgressBar(total=expert.total_images, completed=expert.images_seen),
                f"{expert.images_seen:,}",
                "" if expert.loss is None else f"{expert.loss:.4f}",
                f"{expert.images_per_s:.0f}" if expert.images_per_s and not expert.state.has_ended else "",
                "" if expert.remaining_s is None else duration(expert.remaining_s),
            )
        ended = sum(expert.state.has_ended for expert in self._experts.values())
        return Group(
            table, Text(f"{ended} of {len(self._experts)} experts ended; Ctrl-C writes checkpoints and stops", "dim")
        )


def _state_words(expert: ExpertStanding) -> str:
    if expert.state is ExpertState.TRAINING and expert.images_seen >= expert.total_images:
        return MEASURED
    return f"{expert.state.value} ({expert.detail})" if expert.detail else expert.state.value

"""What runs that somebody else has started do, in tables and words."""

import time
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.standing import DriverState, ExpertStanding, RunStanding, count_states, remaining_s
from orchestrator.terminal.experts import STYLES
from orchestrator.terminal.words import duration, timestamp

DRIVER_STYLES = {DriverState.RUNS: "green", DriverState.GONE: "bold red", DriverState.SILENT: "yellow"}

Look = tuple[RunStanding, DriverState]
"""A status, and what has become of its driver."""


def runs_table(looks: Iterable[Look]) -> Table:
    """A row per run."""
    table = Table(box=SIMPLE)
    for name in ("run", "kind", "driver", "does", "experts"):
        table.add_column(name, no_wrap=name in {"run", "kind"})
    for name in ("images/s", "left", "begun"):
        table.add_column(name, justify="right", no_wrap=True)
    for status, driver in looks:
        rate, left = _rate(status.experts), remaining_s(status.experts)
        alive = driver is DriverState.RUNS
        table.add_row(
            status.name,
            status.kind,
            Text(_driver_words(status, driver), DRIVER_STYLES.get(driver, "dim")),
            doing_words(status),
            states_words(status.experts),
            f"{rate:,.0f}" if rate and alive else "",
            "" if left is None or not alive else duration(left),
            timestamp(status.begun_s),
        )
    return table


def run_lines(status: RunStanding, driver: DriverState) -> Group:
    """One run: what is done with it and by whom, a row per expert."""
    by = f"process {status.pid} on {status.host}{f', job {status.job}' if status.job else ''}"
    head = Text(f"{status.name} ({status.kind}): ")
    head.append(_driver_words(status, driver), DRIVER_STYLES.get(driver, "dim"))
    if driver in {DriverState.GONE, DriverState.SILENT}:
        head.append("; the same command goes on from its checkpoints")
    lines: list[RenderableType] = [head, Text(f"begun {timestamp(status.begun_s)} by {by}")]
    left = remaining_s(status.experts)
    if driver is DriverState.RUNS and (doing := doing_words(status)):
        lines.append(Text(f"{doing}{f', about {duration(left)} left' if left is not None else ''}"))
    if status.experts:
        known = "" if driver in {DriverState.RUNS, DriverState.ENDED} else "last known: "
        lines += [Text(f"{known}{states_words(status.experts)}"), _experts_table(status, driver)]
    return Group(*lines)


def _experts_table(status: RunStanding, driver: DriverState) -> Table:
    table, alive = Table(box=SIMPLE), driver is DriverState.RUNS
    for name in ("expert", "interval", "state", "node"):
        table.add_column(name, no_wrap=True)
    for name in ("images", "", "loss", "images/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("restarts", "remark"):
        table.add_column(name)
    for expert in status.experts:
        left = expert.remaining_s if alive else None
        table.add_row(
            expert.name,
            str(expert.interval),
            Text(expert.state.value, STYLES.get(expert.state, "dim")),
            ", ".join(words for words in (expert.node, workers_words(expert)) if words),
            f"{expert.images_seen:,}",
            f"{expert.images_seen / expert.total_images:.0%}",
            "" if expert.loss is None else f"{expert.loss:.4f}",
            f"{expert.images_per_s:,.0f}" if expert.images_per_s and alive and not expert.state.has_ended else "",
            "" if left is None else duration(left),
            restarts_words(expert),
            expert.detail,
        )
    return table


def doing_words(status: RunStanding) -> str:
    """Sampling 320 of 1,000 images."""
    return f"{status.doing} {status.done:,} of {status.total:,}" if status.total else status.doing


def states_words(experts: Sequence[ExpertStanding]) -> str:
    """1 queued, 2 training."""
    return ", ".join(f"{number} {state.value}" for state, number in count_states(experts).items())


def workers_words(expert: ExpertStanding) -> str:
    """4 workers, or 2 of 4 workers; nothing of one that has a process of its own."""
    if expert.num_workers is None:
        return ""
    wanted = f" of {expert.wanted_workers}" if expert.num_workers < expert.wanted_workers else ""
    return f"{expert.num_workers}{wanted} workers"


def restarts_words(expert: ExpertStanding) -> str:
    """How often each cause stopped it: 2 x its process died (0:40 lost)."""
    causes = [restart.cause for restart in expert.restarts]
    words = [f"{causes.count(cause)} x {cause.value}" for cause in dict.fromkeys(causes)]
    return f"{', '.join(words)} ({duration(expert.lost_s)} lost)" if words else ""


def _driver_words(status: RunStanding, driver: DriverState) -> str:
    if driver is DriverState.ENDED:
        return f"{status.ended} {timestamp(status.written_s)}{f': {status.reason}' if status.reason else ''}"
    if driver is DriverState.RUNS:
        return f"{driver.value}, last heard {duration(max(0.0, time.time() - status.written_s))} ago"
    return f"{driver.value} since {timestamp(status.written_s)}"


def _rate(experts: Sequence[ExpertStanding]) -> float:
    return sum(expert.images_per_s for expert in experts if not expert.state.has_ended)

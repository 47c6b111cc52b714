"""What runs that somebody else has started do, in tables and words."""

import time
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.standing import DriverState, ExpertStanding, Restart, RunStanding, count_states, remaining_s
from orchestrator.terminal.experts import STYLES
from orchestrator.terminal.words import duration, timestamp

DRIVER_STYLES = {DriverState.RUNS: "green", DriverState.GONE: "bold red", DriverState.SILENT: "yellow"}

Look = tuple[RunStanding, DriverState]
"""A status, and what has become of its driver."""


RUN_COLUMNS = ("run", "kind", "driver", "does", "experts")
RUN_NUMBERS = ("images/s", "left", "begun")


def runs_table(looks: Iterable[Look]) -> Table:
    """A row per run."""
    table = Table(box=SIMPLE)
    for name in RUN_COLUMNS:
        table.add_column(name, no_wrap=name in {"run", "kind"})
    for name in RUN_NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for status, driver in looks:
        cells = run_cells(status, driver)
        styles = {"driver": DRIVER_STYLES.get(driver, "dim")}
        table.add_row(*(Text(cells[name], styles.get(name, "")) for name in (*RUN_COLUMNS, *RUN_NUMBERS)))
    return table


def run_cells(status: RunStanding, driver: DriverState) -> dict[str, str]:
    """What is said of one run among others, by column."""
    rate, left = rate_of(status.experts), remaining_s(status.experts)
    alive = driver is DriverState.RUNS
    return {
        "run": status.name,
        "kind": status.kind,
        "driver": driver_words(status, driver),
        "does": doing_words(status),
        "experts": states_words(status.experts),
        "images/s": f"{rate:,.0f}" if rate and alive else "",
        "left": "" if left is None or not alive else duration(left),
        "begun": timestamp(status.begun_s),
    }


def run_lines(status: RunStanding, driver: DriverState) -> Group:
    """One run: what is done with it and by whom, a row per expert."""
    head = Text(f"{status.name} ({status.kind}): ")
    head.append(driver_words(status, driver), DRIVER_STYLES.get(driver, "dim"))
    advice, *rest = run_words(status, driver)
    head.append(f"; {advice}" if advice else "")
    lines: list[RenderableType] = [head, *(Text(line) for line in rest if line)]
    return Group(*lines, *([_experts_table(status, driver)] if status.experts else []))


def run_words(status: RunStanding, driver: DriverState) -> tuple[str, str, str, str]:
    """What to do, by whom it is carried out, what is being done, and how many experts are in which state."""
    is_lost = driver in {DriverState.GONE, DriverState.SILENT}
    left, doing = remaining_s(status.experts), doing_words(status)
    job = f", job {status.job}" if status.job else ""
    return (
        "the same command goes on from its checkpoints" if is_lost else "",
        f"begun {timestamp(status.begun_s)} by process {status.pid} on {status.host}{job}",
        f"{doing}{f', about {duration(left)} left' if left is not None else ''}"
        if driver is DriverState.RUNS and doing
        else "",
        f"{'last known: ' if is_lost else ''}{states_words(status.experts)}" if status.experts else "",
    )


EXPERT_NUMBERS = {"images", "share", "loss", "images/s", "left"}
EXPERT_WORDS = {"node", "restarts", "remark"}


def _experts_table(status: RunStanding, driver: DriverState) -> Table:
    rows = [expert_cells(expert, driver) for expert in status.experts]
    # A narrow terminal has no place for what says nothing, and breaks words before it cuts numbers off.
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(box=None, pad_edge=False)
    for name in columns:
        is_number = name in EXPERT_NUMBERS
        heading = "" if name == "share" else name
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=name not in EXPERT_WORDS)
    for expert, row in zip(status.experts, rows, strict=True):
        styles = {"state": STYLES.get(expert.state, "dim")}
        table.add_row(*(Text(row[name], styles.get(name, "")) for name in columns))
    return table


def expert_cells(expert: ExpertStanding, driver: DriverState) -> dict[str, str]:
    """What is said of one expert, by column."""
    alive = driver is DriverState.RUNS
    left = expert.remaining_s if alive else None
    rate = expert.images_per_s if alive and not expert.state.has_ended else 0.0
    return {
        "expert": expert.name,
        "interval": str(expert.interval),
        "state": expert.state.value,
        "node": ", ".join(words for words in (expert.node, workers_words(expert)) if words),
        "images": f"{expert.images_seen:,}",
        "share": f"{expert.images_seen / expert.total_images:.0%}",
        "loss": "" if expert.loss is None else f"{expert.loss:.4f}",
        "images/s": f"{rate:,.0f}" if rate else "",
        "left": "" if left is None else duration(left),
        "restarts": restarts_words(expert),
        "remark": expert.detail,
    }


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


def restart_sentence(expert: ExpertStanding, restart: Restart) -> str:
    """Of one restart: when, why and what it cost."""
    return f"{timestamp(restart.at_s)}: {expert.name} stopped, {restart.cause.value}; {duration(restart.lost_s)} lost"


def driver_words(status: RunStanding, driver: DriverState) -> str:
    """What has become of the driver, and since when."""
    if driver is DriverState.ENDED:
        return f"{status.ended} {timestamp(status.written_s)}{f': {status.reason}' if status.reason else ''}"
    if driver is DriverState.RUNS:
        return f"{driver.value}, last heard {duration(max(0.0, time.time() - status.written_s))} ago"
    return f"{driver.value} since {timestamp(status.written_s)}"


def rate_of(experts: Sequence[ExpertStanding]) -> float:
    """Images per second of all that train."""
    return sum(expert.images_per_s for expert in experts if not expert.state.has_ended)

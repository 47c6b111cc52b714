"""`rememe watch`: what has changed in a run or a study since it was last looked at, and the looking."""

import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from orchestrator.plan.standing import DriverState, ExpertStanding, remaining_s
from orchestrator.search.running.status import WholeStatus
from orchestrator.search.study.status import ConfigurationStatus
from orchestrator.terminal.progress import PLAIN_INTERVAL_S, print_line
from orchestrator.terminal.status import doing_words, driver_words, rate_of, restart_sentence, run_words, states_words
from orchestrator.terminal.words import duration

INTERVAL_S = 2.0


def watch_to_end(look: Callable[[], WholeStatus], console: Console) -> WholeStatus:
    """Redraw its table in a terminal, print what happens elsewhere, until nothing more is to come."""
    if not console.is_terminal:
        return _print_to_end(look, console)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = look()
            live.update(found.show(), refresh=True)
            if has_ended(found):
                return found
            time.sleep(INTERVAL_S)


def _print_to_end(look: Callable[[], WholeStatus], console: Console) -> WholeStatus:
    before, told_s = None, time.monotonic()
    while True:
        found = look()
        lines = changes(before, found)
        if time.monotonic() - told_s > PLAIN_INTERVAL_S and (said := progress_line(found)):
            lines, told_s = [*lines, said], time.monotonic()
        for line in lines:
            print_line(line, console)
        if has_ended(found):
            return found
        time.sleep(INTERVAL_S)
        before = found


def has_ended(now: WholeStatus) -> bool:
    """Whether nothing more is to come: it has ended, or its driver is gone."""
    return now.driver in {DriverState.ENDED, DriverState.GONE}


def changes(before: WholeStatus | None, now: WholeStatus) -> list[str]:
    """A line for everything that has happened in between; of an expert its states and restarts, not its progress."""
    known = before.status.experts if before else ()
    experts = {expert.key: expert for expert in known}
    configurations = {one.number: one for one in (before.configurations if before else ())}
    lines = [line for expert in now.status.experts for line in _of_expert(experts.get(expert.key), expert)]
    lines += [line for one in now.configurations for line in _of_configuration(configurations.get(one.number), one)]
    if before is None or before.driver is not now.driver:
        advice = run_words(now.status, now.driver)[0]
        head = f"{now.status.name} ({now.status.kind}): {driver_words(now.status, now.driver)}"
        lines.insert(0 if before is None else len(lines), f"{head}; {advice}" if advice else head)
    return lines


def progress_line(now: WholeStatus) -> str:
    """What is being done, how fast, and how long it will take; nothing if nobody does anything."""
    if now.driver is not DriverState.RUNS:
        return ""
    experts = now.status.experts
    rate, left = rate_of(experts), remaining_s(experts)
    said = [doing_words(now.status), states_words(experts), f"{rate:,.0f} images/s" if rate else ""]
    said.append(f"about {duration(left)} left" if left is not None else "")
    return ", ".join(words for words in said if words)


def _of_expert(before: ExpertStanding | None, now: ExpertStanding) -> Iterator[str]:
    for restart in now.restarts[len(before.restarts) if before else 0 :]:
        yield restart_sentence(now, restart)
    if before is None or (before.state, before.detail) != (now.state, now.detail):
        where = f"on {now.node}" if now.node and not now.state.has_ended else ""
        said = ", ".join(words for words in (now.detail, where) if words)
        yield f"{now.name} {now.interval}: {now.state.value}{f' ({said})' if said else ''}"


def _of_configuration(before: ConfigurationStatus | None, now: ConfigurationStatus) -> Iterator[str]:
    if before is None or (before.state, before.scores) != (now.state, now.scores):
        scores = [f"{name} {value:.4g}" for name, value in now.scores.items()]
        yield f"configuration {now.number}: {', '.join([now.state, *scores])}{f': {now.error}' if now.error else ''}"

"""Waiting for what other processes and threads do."""

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_S = 600.0
"""A loaded machine starts Ray ten times slower than an idle one: this ends a hang, never a slow start."""


def wait_until(
    condition: Callable[[], T],
    told: Callable[[], object] = str,
    *,
    process: "subprocess.Popen[Any] | None" = None,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.05,
) -> T:
    """The first true answer of `condition`.

    Args:
        condition: Asked every `interval_s`.
        told: What to show if it never holds: a log, what was seen instead.
        process: Who makes it true; that it has ended is a failure at once.
        timeout_s: Less than PATIENCE_S only where the time itself is what the test is about.

    Raises:
        AssertionError: If it does not hold in time, or the process ends first.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert process is None or process.poll() is None, f"ended with {process.poll()}: {told()}"
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s: {told()}"
        time.sleep(interval_s)
    return answer

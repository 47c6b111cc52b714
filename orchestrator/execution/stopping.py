"""Stopping on request: signals, and how long a last checkpoint may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_TIMEOUT_S = 60.0
"""Experts that were asked to stop and have not by then are ended without a checkpoint."""


@contextmanager
def stop_signals(stop_requested: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets the event, the second interrupts."""
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield
        return

    def handle(number: int, frame: Any) -> None:  # noqa: ARG001
        if stop_requested.is_set():
            raise KeyboardInterrupt
        stop_requested.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

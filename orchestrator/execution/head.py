"""The head of a private cluster does not come back. Ray would wait a minute for it and end without a sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from orchestrator.plan.errors import ClusterError

HEAD = "gcs_server"
"""As Ray calls it."""

LOOK_INTERVAL_S = 1.0

LOST = (
    "Ray's head process has ended (out of memory, or killed?); checkpoints are written as they were due, run the same "
    "command again to continue"
)


@contextmanager
def ended_with_head() -> Iterator[None]:
    """Inside the block, this process says so and ends, as Ray would have it a minute later; wherever it is waiting."""
    over = Event()
    watcher = Thread(target=_watch, args=(over,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # Before Ray is shut down, which is an end of the head too.
        over.set()
        watcher.join()


def _watch(over: Event) -> None:
    import ray

    node = ray._private.worker.global_worker.node
    while not over.wait(LOOK_INTERVAL_S):
        if HEAD in {kind for kind, _ in node.dead_processes()}:
            # The main thread may be in a call to Ray that nothing interrupts.
            print(f"\nerror: {LOST}", file=sys.stderr, flush=True)
            os._exit(ClusterError.exit_code)

"""Who trains a job now, where several could write: whoever began last. The one before leaves.

A node that the driver has lost may train on behind a cut link, and still see the directory that all nodes share. Nobody
can tell it to stop, and it holds the lock that the job's next process waits for; so that one writes its name there.
"""

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workloads.files import write_text
from workloads.places import JobDir

LOOK_INTERVAL_S = 2.0

LEAVE_TIMEOUT_S = 60.0
"""For a last checkpoint; the next process waits twice as long for the lock."""


@contextmanager
def tenancy(job: JobDir, leave: Callable[[], None]) -> Iterator[None]:
    """Begin here, so that who trains the job elsewhere leaves; leave() is called when another begins after this one.

    If the block does not end then, its process does: it may wait for workers that it cannot reach any more.
    """
    name, is_over = uuid.uuid4().hex, threading.Event()
    write_text(job.tenant, name)

    def watch() -> None:
        while not is_over.wait(LOOK_INTERVAL_S):
            if not _is_other(job.tenant, name):
                continue
            leave()
            if not is_over.wait(LEAVE_TIMEOUT_S):
                os._exit(1)
            return

    watcher = threading.Thread(target=watch, name=f"rememe-tenancy-{name}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _is_other(file: Path, name: str) -> bool:
    try:
        there = file.read_bytes()
    except OSError:  # set aside as damaged, or out of reach
        return False
    # What is no such name was written by nobody.
    return re.fullmatch(rb"[0-9a-f]{32}", there) is not None and there != name.encode()

"""What a private cluster leaves behind when its driver is killed is ended at once: Ray's agents would stay a minute."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WATCH = """
import os, signal, sys
is_shut_down = bool(sys.stdin.read())
token = os.environb[b"RAY_AUTH_TOKEN"]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read()
        is_of_node = b"RAY_RAYLET_PID=" in variables
        if token in variables and (is_of_node or not is_shut_down) and int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""Waits for the end of its input, which comes with the end of the driver; needs nothing but Python's own modules.

A driver that has shut Ray down writes a line before: then only what a node has started ends, not the driver's own.
"""


@contextmanager
def ended_with_driver() -> Iterator[None]:
    """Inside the block, a process of its own sees to it; it knows the cluster's processes by the token they share."""
    if "RAY_AUTH_TOKEN" not in os.environ:
        yield
        return
    # In a session of its own: a Ctrl-C is not for it.
    command = [sys.executable, "-S", "-E", "-c", WATCH]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        # A node that died before has left its agents and workers behind.
        watcher.communicate(b"shut down")

"""The processes of a private cluster end with its driver."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from waiting import wait_until

DRIVER = """
import os, subprocess
os.environ["RAY_AUTH_TOKEN"] = f"a token of {os.getpid()}"
from orchestrator.execution.leftovers import ended_with_driver
with ended_with_driver():
    for more in ({}, {"RAY_RAYLET_PID": "1"}):
        environment = os.environ | more
        one = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, start_new_session=True, env=environment)
        print(one.pid, flush=True)
    input()
"""


def start() -> tuple["subprocess.Popen[str]", int, int]:
    """A driver, what it has started, and what a node of its cluster has."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    return driver, int(driver.stdout.readline()), int(driver.stdout.readline())


def ends(pid: int) -> bool:
    return wait_until(lambda: not lives(pid))


def lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty when it has ended and nobody has asked yet
    except OSError:
        return False


def test_what_a_killed_driver_leaves_is_ended() -> None:
    (killed, *its), (ended, other, of_node) = start(), start()
    killed.kill()
    killed.communicate()
    assert all(map(ends, its))
    assert lives(other)
    assert lives(of_node)
    ended.communicate("\n")  # Ray's own shutdown ends what the driver has started, and not what a dead node has
    assert ended.returncode == 0
    assert ends(of_node)
    assert lives(other)
    os.kill(other, signal.SIGKILL)

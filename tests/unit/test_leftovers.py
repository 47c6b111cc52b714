"""The processes of a private cluster end with a driver that is killed, and only then."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DRIVER = """
import os, subprocess
os.environ["RAY_AUTH_TOKEN"] = f"a token of {os.getpid()}"
from orchestrator.execution.leftovers import ended_with_driver
with ended_with_driver():
    agent = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, start_new_session=True)
    print(agent.pid, flush=True)
    input()
"""


def start() -> tuple["subprocess.Popen[str]", int]:
    """A driver, and what it has started."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    return driver, int(driver.stdout.readline())


def lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty when it has ended and nobody has asked yet
    except OSError:
        return False


def test_what_a_killed_driver_leaves_is_ended() -> None:
    (killed, its), (ended, other) = start(), start()
    killed.kill()
    killed.communicate()
    deadline_s = time.monotonic() + 20
    while lives(its) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not lives(its)
    ended.communicate("\n")  # Ray's own shutdown is what ends its processes here
    assert ended.returncode == 0
    assert lives(other)
    os.kill(other, signal.SIGKILL)

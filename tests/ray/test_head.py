"""A private cluster whose head dies: one sentence at once, and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.execution.head import HEAD

pytestmark = pytest.mark.ray

DRIVER = f"""
from orchestrator.execution.environment import prepare_ray_environment
prepare_ray_environment(None)
import time
from orchestrator.execution.cluster import connect
with connect(None, num_cpus=1):
    import ray
    @ray.remote
    def wait():
        time.sleep(600)
    task = wait.remote()
    (head,) = ray._private.worker.global_worker.node.all_processes["{HEAD}"]
    print(head.process.pid, flush=True)
    ray.get(task)
"""

ANSWER_S = 30.0
"""Ray itself would take a minute."""


def test_a_dead_head_ends_the_command_with_a_sentence() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    head = int(driver.stdout.readline())
    token = _token(head)
    killed_s = time.monotonic()
    os.kill(head, signal.SIGKILL)
    _, told = driver.communicate(timeout=120)
    assert time.monotonic() - killed_s < ANSWER_S
    assert driver.returncode == 1
    assert "error: Ray's head process has ended" in told
    while left := _with(token):
        assert time.monotonic() - killed_s < 2 * ANSWER_S, left
        time.sleep(0.1)


def _token(pid: int) -> bytes:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(variable for variable in variables if variable.startswith(b"RAY_AUTH_TOKEN="))


def _with(token: bytes) -> list[str]:
    """Command lines of the processes of a cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if token in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().decode())
            except OSError:  # ended meanwhile
                continue
    return found

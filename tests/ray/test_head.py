"""A private cluster whose head or driver dies: nothing is left, and the driver says at once why it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import PATIENCE_S

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

KINDS = ("gcs_server", "raylet/raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::wait")

ANSWER_S = 30.0
"""Ray itself would take a minute."""


@pytest.mark.parametrize(
    ("dies", "code", "sentence"), [("head", 1, "error: Ray's head process has ended"), ("driver", -signal.SIGKILL, "")]
)
def test_a_dead_cluster_leaves_nothing(dies: str, code: int, sentence: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    head = int(driver.stdout.readline())
    family = wait_for_all(driver.pid)
    killed_s = time.monotonic()
    os.kill(head if dies == "head" else driver.pid, signal.SIGKILL)
    _, told = driver.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - killed_s < ANSWER_S
    assert driver.returncode == code
    assert sentence in told
    while left := {pid: name for pid, name in descendants(1).items() if family.get(pid) == name}:
        assert time.monotonic() - killed_s < 2 * ANSWER_S, left
        time.sleep(0.1)


def wait_for_all(driver: int) -> dict[int, str]:
    """Its processes, once the agents and a worker are there."""
    while True:
        family = descendants(driver)
        if all(any(kind in name for name in family.values()) for kind in KINDS):
            return family
        time.sleep(0.1)


def descendants(root: int) -> dict[int, str]:
    """Command lines by pid."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # ended meanwhile
                continue
            if state != "Z":
                parents[int(entry.name)], names[int(entry.name)] = int(parent), name
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names[pid] for pid in found - {root} if pid in names}

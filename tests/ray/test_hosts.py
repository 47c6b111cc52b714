"""Three hosts: network namespaces with addresses of their own, joined by a switch that cuts, delays and loses.

The switch is a thread here that carries the frames from one TAP device to the other, so no kernel module is needed
(tc netem is one that many kernels lack).
"""

import fcntl
import heapq
import itertools
import json
import os
import queue
import random
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.plan.jobs import make_plan
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.training.job import train_job

pytestmark = pytest.mark.ray

HOSTS = ("head", "left", "right")
BIN = Path(sys.executable).parent
PORT = 6379
TIMEOUT_S = 240.0

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h


class Switch(threading.Thread):
    """Carries Ethernet frames between hosts; what it does to those of a host may change at any time."""

    def __init__(self, taps: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._taps = taps
        self._where: dict[bytes, int] = {}
        self._rng = random.Random(0)
        self._late: list[tuple[float, int, int, bytes]] = []
        self.cut: set[str] = set()
        self.delay_s = 0.0
        self.loss = 0.0
        self.num_lost = 0
        self.is_over = False

    def run(self) -> None:
        order = itertools.count()
        names = {tap: name for name, tap in self._taps.items()}
        while not self.is_over:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else 0.2
            for tap in select.select(list(names), [], [], wait_s)[0]:
                frame = os.read(tap, 65536)
                self._where[frame[6:12]] = tap  # the sender's address
                known = self._where.get(frame[:6])
                for other in [known] if known is not None else [one for one in names if one != tap]:
                    if self.cut & {names[tap], names[other]}:
                        continue
                    if self._rng.random() < self.loss:
                        self.num_lost += 1
                        continue
                    heapq.heappush(self._late, (time.monotonic() + self.delay_s, next(order), other, frame))
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, other, frame = heapq.heappop(self._late)
                os.write(other, frame)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """The three of them, and what runs on them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, tag = scratch, f"r{os.getpid() % 10**7}"
        self.spaces = {name: f"{tag}{name[0]}" for name in HOSTS}
        self.addresses = {name: f"10.99.7.{number}" for number, name in enumerate(HOSTS, 1)}
        self.address = f"{self.addresses['head']}:{PORT}"
        self.processes: list[subprocess.Popen[str]] = []
        self.raylets: dict[str, subprocess.Popen[str]] = {}
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node is dead after some 6 s instead of 30 without a sign of life, and one that lost the head ends soon.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.taps = {}
        for name in HOSTS:
            self._build(name)
        self.switch = Switch(self.taps)
        self.switch.start()

    def _build(self, name: str) -> None:
        space = self.spaces[name]
        ip("netns", "add", space)
        tap = os.open("/dev/net/tun", os.O_RDWR)
        self.taps[name] = tap
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22s", space.encode(), IFF_TAP | IFF_NO_PI, b""))
        ip("link", "set", space, "netns", space)
        ip("-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", space)
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", space, "up")

    def run(self, host: str, *command: object, log: Path | None = None) -> "subprocess.Popen[str]":
        """Start a program on a host, in a process group of its own."""
        out = subprocess.PIPE if log is None else log.open("a")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[host], *map(str, command)],
            env=self.environment,
            stdout=out,
            stderr=subprocess.STDOUT if log is not None else subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def join(self, name: str) -> None:
        """What the init system of a host does: start Ray there, when it boots and when Ray has ended."""
        command = [BIN / "ray", "start", "--block", f"--node-ip-address={self.addresses[name]}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        if name == "head":
            command += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            command += [f"--temp-dir={self.scratch / 'ray'}"]
        else:
            command += [f"--address={self.address}", "--num-cpus=1"]
        self.raylets[name] = self.run(name, *command, log=self.scratch / f"{name}.log")

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        self.switch.is_over = True
        for name, space in self.spaces.items():
            # What a raylet has started stays in the namespace, and nothing else is there.
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout
            for pid in map(int, pids.split()):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
            os.close(self.taps[name])
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("three hosts need network namespaces and TAP devices: `ip`, root and /dev/net/tun")
    try:
        made = Hosts(Path(tempfile.mkdtemp(prefix="rh", dir="/tmp")))
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"three hosts need network namespaces, which are not permitted here: {error}")
    try:
        for name in HOSTS:
            made.join(name)
            if name == "head":
                wait_for(lambda: "Ray runtime started" in (made.scratch / "head.log").read_text(), "the head")
        yield made
    finally:
        made.close()


def wait_for(holds: Callable[[], Any], what: str, timeout_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.2)


class Driver:
    """A training on the head, and what it has said."""

    def __init__(self, hosts: Hosts, raw: dict[str, Any], dataset: PreparedDataset, store: ExpertStore) -> None:
        config = hosts.scratch / f"{raw['name']}.json"
        config.write_text(json.dumps(raw))
        script = Path(__file__).with_name("hosts_driver.py")
        command = [sys.executable, script, hosts.address, config, dataset.path, store.root]
        self.process = hosts.run("head", *command)
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def until(self, holds: Callable[[dict[str, Any]], bool], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Listen until it says so."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            line = self._lines.get(timeout=max(0.1, deadline_s - time.monotonic()))
            assert line, f"the driver ended with {self.process.wait()}: {self.said[-5:]}"
            if not line.startswith("{"):
                continue  # Ray's own
            said = json.loads(line)
            said["at_s"] = time.monotonic()
            self.said.append(said)
            if os.environ.get("SHOW"):
                print(f"{time.monotonic():.1f} {line}", end="", file=sys.stderr)
            if holds(said):
                return said

    def to_the_end(self) -> dict[str, Any]:
        return self.until(lambda said: "failed" in said)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [said for said in self.said if said.get("event") == event]


def is_event(event: str) -> Callable[[dict[str, Any]], bool]:
    return lambda said: said.get("event") == event


def host_of(hosts: Hosts, pid: int) -> str:
    """Where a process runs."""
    space = subprocess.run(["ip", "netns", "identify", str(pid)], capture_output=True, text=True, check=True).stdout
    return next(name for name, one in hosts.spaces.items() if one == space.strip())


def same_weights(raw: dict[str, Any], dataset: PreparedDataset, store: ExpertStore, scratch: Path) -> None:
    """What the store holds is what an undisturbed loop trains, bit for bit."""
    config, num_threads = RunConfig.model_validate(raw), torch.get_num_threads()
    for job in make_plan(config, dataset.spec(config.data)).jobs:
        expected = train_job(job.job, dataset.path, scratch / job.key, num_threads=1)
        found = store.completed(job.key)
        assert found is not None
        assert found.weights_sha256 == expected.weights_sha256
    torch.set_num_threads(num_threads)


def test_links_that_break_and_heal_cost_experts_nothing(
    hosts: Hosts, tiny_run: dict[str, Any], dataset: PreparedDataset, store: ExpertStore, tmp_path: Path
) -> None:
    """A slow and lossy link, one cut for a moment, one cut until its host is given up, one cut for good."""
    training = tiny_run["training"] | {"images": 9_600, "checkpoint_every_images": 640, "log_every_images": 320}
    raw = tiny_run | {"name": "experts", "training": training, "execution": {"max_attempts": 1}}
    driver = Driver(hosts, raw, dataset, store)
    first = driver.until(is_event("Training"))
    hosts.switch.delay_s, hosts.switch.loss = 0.01, 0.01
    driver.until(is_event("Checkpointed"))
    home = host_of(hosts, first["pid"])
    other = next(name for name in ("left", "right") if name != home)

    hosts.switch.cut.add(home)
    time.sleep(1.5)
    hosts.switch.cut.clear()
    driver.until(lambda said: said.get("event") == "Progressed" and said["key"] == first["key"])
    assert not driver.of("Restarting")

    hosts.switch.cut.add(home)
    cut_s = time.monotonic()
    lost = driver.until(is_event("Restarting"))
    print(f"a host behind a cut link was given up after {time.monotonic() - cut_s:.0f} s")
    assert lost["cause"] == "NODE_LOST"
    hosts.raylets[home].wait(90)  # it has noticed that the cluster goes on without it
    hosts.switch.cut.clear()
    hosts.join(home)
    back = driver.until(lambda said: said.get("event") == "Training" and host_of(hosts, said["pid"]) == home)
    hosts.switch.cut.add(other)  # for good
    driver.until(lambda said: said.get("event") == "Restarting" and said["at_s"] > back["at_s"])
    assert driver.to_the_end()["failed"] == {}
    assert hosts.switch.num_lost > 0
    assert {said["cause"] for said in driver.of("Restarting")} == {"NODE_LOST"}
    same_weights(raw, dataset, store, tmp_path)

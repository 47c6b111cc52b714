"""Three hosts: network namespaces with addresses of their own, joined by a switch that cuts, delays and loses.

The switch is a thread here that carries frames from one TAP device to the other: it does what tc netem would, which is
a kernel module that many machines lack.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import PATIENCE_S, wait_until

from orchestrator.plan.jobs import make_plan
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.places import JobDir, SharedDir
from workloads.training.job import train_job
from workloads.training.result import completed

pytestmark = pytest.mark.ray

HOSTS = ("head", "left", "right")
BIN = Path(sys.executable).parent
PORT = 6379

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
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node behind a cut link is given up after some 9 s instead of 65.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.taps: dict[str, int] = {}
        self.switch = Switch(self.taps)

    def build(self, name: str) -> None:
        """A namespace with an address of its own, at the end of a cable to the switch."""
        space = self.spaces[name]
        ip("netns", "add", space)
        tap = os.open("/dev/net/tun", os.O_RDWR)
        self.taps[name] = tap
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22s", space.encode(), IFF_TAP | IFF_NO_PI, b""))
        ip("link", "set", space, "netns", space)
        ip("-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", space)
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", space, "up")

    def named(self, address: str) -> str:
        """The host with this address."""
        return next(name for name, one in self.addresses.items() if one == address)

    def run(self, host: str, *command: object, log: Path, is_heard: bool = False) -> "subprocess.Popen[str]":
        """Start a program on a host; what it says goes to the log, or its standard output to whoever started it."""
        with log.open("a") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.spaces[host], *map(str, command)],
                env=self.environment,
                stdout=subprocess.PIPE if is_heard else out,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def head_is_up(self) -> bool:
        return "Ray runtime started" in self.log("head").read_text()

    def serve(self, name: str) -> None:
        """What the service manager of a host does: start Ray there, and again whenever it has ended."""
        command = [BIN / "ray", "start", "--block", f"--node-ip-address={self.addresses[name]}"]
        command += ["--object-store-memory=100000000", f"--temp-dir={self.scratch / name}"]
        if name == "head":
            command += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        else:
            command += [f"--address={self.address}", "--num-cpus=1"]
        again = ["bash", "-c", 'while :; do "$@"; sleep 1; done', "serve"]
        self.run(name, *again, *command, log=self.log(name))

    def close(self) -> None:
        self.switch.is_over = True
        if self.switch.is_alive():
            self.switch.join()
        for space in self.spaces.values():
            # Whatever was started there is still there.
            while pids := subprocess.run(["ip", "netns", "pids", space], capture_output=True, check=False).stdout:
                for pid in map(int, pids.split()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
        for process in self.processes:
            process.wait()
        for tap in self.taps.values():
            os.close(tap)
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("three hosts need network namespaces and TAP devices: `ip`, root and /dev/net/tun")
    made = Hosts(Path(tempfile.mkdtemp(prefix="rh", dir="/tmp")))  # a short path, for sockets
    try:
        try:
            for name in HOSTS:
                made.build(name)
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"three hosts need network namespaces, which are not permitted here: {error}")
        made.switch.start()
        for name in HOSTS:
            made.serve(name)
            if name == "head":
                wait_until(made.head_is_up, made.log(name).read_text)
        yield made
    finally:
        made.close()


class Driver:
    """A training on the head, and what it has said."""

    def __init__(self, hosts: Hosts, raw: dict[str, Any], dataset: PreparedDataset, store: ExpertStore) -> None:
        config = hosts.scratch / f"{raw['name']}.json"
        config.write_text(json.dumps(raw))
        script = Path(__file__).with_name("hosts_driver.py")
        command = [sys.executable, script, hosts.address, config, dataset.path, store.root]
        self._log = config.with_suffix(".log")
        self.process = hosts.run("head", *command, log=self._log, is_heard=True)
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def until(self, holds: Callable[[dict[str, Any]], bool], timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Listen until it says so."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            assert time.monotonic() < deadline_s, f"the driver hangs: {self.said[-5:]}"
            try:
                line = self._lines.get(timeout=1.0)
            except queue.Empty:
                continue
            assert line, f"the driver ended with {self.process.wait()}: {self.said[-5:]} {self._log.read_text()}"
            if not line.startswith("{"):
                continue  # Ray's own
            said = json.loads(line)
            said["at_s"] = time.monotonic()
            self.said.append(said)
            if holds(said):
                return said

    def to_the_end(self) -> dict[str, Any]:
        return self.until(lambda said: "failed" in said)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [said for said in self.said if said.get("event") == event]


def is_event(event: str) -> Callable[[dict[str, Any]], bool]:
    return lambda said: said.get("event") == event


@pytest.fixture(scope="module")
def remix(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """Trained by a worker on each of two hosts."""
    return tiny_run | {
        "name": "remix",
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4},
        "training": tiny_run["training"] | {"images": 1920},
        "execution": {"num_workers": 2, "max_attempts": 1},
    }


@pytest.fixture(scope="module")
def undisturbed(remix: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Waits for the runs directory of the same remix under torchrun, which trains while hosts are waited for."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "remix.yaml").write_text(json.dumps(remix))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "workloads", "train", str(folder / "remix.yaml"), "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def waited() -> Path:
            said, _ = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, said
            return folder

        yield waited
        process.kill()


def test_the_experts_of_a_host_that_is_cut_off_move_and_it_keeps_none(
    hosts: Hosts, tiny_run: dict[str, Any], dataset: PreparedDataset, store: ExpertStore, tmp_path: Path
) -> None:
    """Its process, stopped as if the host had been suspended, holds the lock of the directory that both still see."""
    training = tiny_run["training"] | {"images": 6400, "checkpoint_every_images": 640}
    strategy = {"kind": "meme", "experts": tiny_run["strategy"]["experts"][:2]}
    raw = tiny_run | {"name": "meme", "strategy": strategy, "training": training, "execution": {"max_attempts": 1}}
    driver = Driver(hosts, raw, dataset, store)
    first = driver.until(is_event("Checkpointed"))["key"]
    (begun,) = [said for said in driver.of("Training") if said["key"] == first]
    tenant = JobDir(store.path(first)).tenant
    name = tenant.read_text()
    hosts.switch.cut.add(hosts.named(begun["node"]))
    os.kill(begun["pid"], signal.SIGSTOP)
    cut_s = time.monotonic()
    lost = driver.until(is_event("Restarting"))
    print(f"a host behind a cut link was given up after {lost['at_s'] - cut_s:.0f} s")
    wait_until(lambda: tenant.read_text() != name, lambda: "its expert is not on the other host")
    os.kill(begun["pid"], signal.SIGCONT)
    assert driver.to_the_end()["failed"] == {}
    assert {said["cause"] for said in driver.of("Restarting")} == {"NODE_LOST"}
    assert begun["node"] not in {said["node"] for said in driver.of("Training") if said["at_s"] > cut_s}
    # Had the one there not left, it would have trained to the end before another came to it.
    moved = [said for said in driver.of("Progressed") if said["key"] == first and said["at_s"] > lost["at_s"]]
    assert len(moved) > 1
    config, num_threads = RunConfig.model_validate(raw), torch.get_num_threads()
    for job in make_plan(config, dataset.spec(config.data)).jobs:
        expected = train_job(job.job, dataset.path, tmp_path / job.key, num_threads=1)
        found = store.completed(job.key)
        assert found is not None
        assert found.weights_sha256 == expected.weights_sha256
    torch.set_num_threads(num_threads)


def test_a_remix_of_two_hosts_outlives_a_slow_a_broken_and_a_healed_link(
    undisturbed: Callable[[], Path], hosts: Hosts, remix: dict[str, Any], dataset: PreparedDataset, store: ExpertStore
) -> None:
    """It goes on after a moment without a link; after a longer one as soon as the host, which Ray took for dead, is
    there again. Ray ends on such a host once it hears that it was given up; its service manager starts it anew."""
    hosts.switch.cut.clear()
    driver = Driver(hosts, remix, dataset, store)
    home = hosts.named(driver.until(is_event("Training"))["node"])
    hosts.switch.delay_s, hosts.switch.loss = 0.01, 0.01
    driver.until(is_event("Checkpointed"))
    hosts.switch.cut.add(home)
    time.sleep(1.5)
    hosts.switch.cut.clear()
    driver.until(is_event("Progressed"))
    assert not driver.of("Restarting")

    hosts.switch.cut.add(home)
    lost = driver.until(is_event("Restarting"))
    assert lost["cause"] == "NODE_LOST"
    waiting = driver.until(is_event("WaitingFor"))
    assert waiting["reason"] == "execution.num_workers is 2, but only 1 of them fit at once"
    hosts.switch.cut.clear()
    back = driver.until(is_event("Training"))
    print(f"the healed host was used again after {back['at_s'] - waiting['at_s']:.0f} s")
    assert driver.to_the_end()["failed"] == {}
    assert len(driver.of("Restarting")) == 1
    assert hosts.switch.num_lost > 0
    config = RunConfig.model_validate(remix)
    (job,) = make_plan(config, dataset.spec(config.data)).jobs
    found, expected = store.completed(job.key), completed(SharedDir(undisturbed()).job(job.key).path)
    assert found is not None
    assert expected is not None
    assert found.weights_sha256 == expected.weights_sha256

"""A run in processes of its own, killed and started again until it is through, and what it has left in the end."""

import gc
import hashlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.kills.tracer import OF_ALL, ORDER, Kill, Tracer

WORKER_END_S = 10.0
"""After one worker has died the other may end by itself; then it is killed, as torchrun and our supervisor do."""

CarryOut = Callable[[Path, Path], int]
"""carry_out(description, folder): a run from wherever it stands to its end; the exit code."""


@dataclass(frozen=True)
class Scenario:
    """What is carried out, on what description, and by how many processes."""

    name: str
    raw: Mapping[str, Any]
    carry_out: CarryOut
    num_workers: int = 1
    look: Callable[[Path], Mapping[str, str]] = field(default_factory=lambda: contents)
    """What must be the same in the end."""

    begin: Callable[[Path], None] = field(default_factory=lambda: lambda _: None)
    """begin(folder): puts there what a run starts from."""


@dataclass
class Killed:
    """What is told of a kill."""

    process: str
    stage: str
    point: str
    recover_s: float | None = None
    """What the next attempt took, to its own end or death."""

    images_again: int = 0
    """That were trained once more after it."""


@dataclass
class Outcome:
    """What is told of a run."""

    scenario: str
    seed: int
    kills: list[Killed] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Empty if it ended as the undisturbed one."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """One start of a run, to its end or its death."""

    lines: list[dict[str, Any]]
    """What its first process has said."""

    codes: list[int]
    seconds: float
    stage: str = ""
    """Where it was killed, if it was."""

    point: str = ""


def fork(function: Callable[[], Any], log: Path) -> int:
    """The number of a process that runs a function and ends with what it returns as exit code, 0 for no number."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        found = function()
        code = found if isinstance(found, int) else 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def in_fork(function: Callable[[], Any]) -> int:
    """The exit code of such a process."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(function, Path(os.devnull)), 0)[1])


class Run:
    """A directory in which a scenario is carried out, as often as it takes."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder, self.out = scenario, folder, folder / "out"
        folder.mkdir(parents=True)
        self._config = folder / "run.yaml"
        self._config.write_text(json.dumps(scenario.raw))
        self._num_attempts = 0
        scenario.begin(self.out)

    def attempt(self, kill: Kill | None = None) -> Attempt:
        """Start it; with a kill, its process is dead when this returns, unless it was through before."""
        self._num_attempts += 1
        started_s = time.perf_counter()
        told = [self.folder / f"told-{self._num_attempts}-{rank}.jsonl" for rank in range(self.scenario.num_workers)]
        pids = [self._fork(rank, told[rank], kill) for rank in range(self.scenario.num_workers)]
        if kill is not None and kill.stage is None:
            _kill_after(pids[kill.rank], kill.after_s)
        codes = _wait(pids)
        said = read(told[0])
        stage, point = "", ""
        if kill is not None and codes[kill.rank] == -signal.SIGKILL:
            last = [line for line in read(told[kill.rank]) if "killed" in line]
            stage = last[0]["stage"] if last else _stage_of(said)
            point = last[0]["killed"] if last else "any time"
        return Attempt(said, codes, time.perf_counter() - started_s, stage, point)

    def _fork(self, rank: int, told: Path, kill: Kill | None) -> int:
        group, size = {}, self.scenario.num_workers
        if size > 1:
            group = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
            group["MASTER_PORT"] = str(self._port(rank))
        kill = kill if kill is not None and kill.rank == rank else None
        return fork(lambda: self._carry_out(told, kill, group), self.folder / "log")

    def _carry_out(self, told: Path, kill: Kill | None, group: Mapping[str, str]) -> int:
        os.environ.update(group)
        with Tracer(told, self.out, kill) as tracer:
            code = self.scenario.carry_out(self._config, self.out)
        tracer.say(counts=tracer.counts, modules=sorted(sys.modules))
        return code

    def _port(self, rank: int) -> int:
        """The same for all ranks of an attempt."""
        if rank == 0:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._last_port: int = probe.getsockname()[1]
        return self._last_port


def _kill_after(pid: int, after_s: float) -> None:
    deadline_s = time.perf_counter() + after_s
    while time.perf_counter() < deadline_s and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


def _wait(pids: Sequence[int]) -> list[int]:
    """Exit codes, negative for a signal; when one has died, the others are not waited for longer than WORKER_END_S."""
    codes: dict[int, int] = {}
    deadline_s = float("inf")
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
                if codes[pid] != 0:
                    deadline_s = min(deadline_s, time.perf_counter() + WORKER_END_S)
        if time.perf_counter() > deadline_s:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def read(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def _stage_of(said: Sequence[Mapping[str, Any]]) -> str:
    """Of a kill at a random time: only whether it trained is known."""
    return "training, at any time" if said and any("step" in line for line in said) else "before or after training"


VOLATILE = {"checksum", "train_s", "peak_memory_bytes", "images_per_s", "loader_wait_share", "written_s"}
"""Measured, so never twice the same."""


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run by its name, without what was measured of time and memory; locks left out."""
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_file() and not file.name.endswith("lock"):
            raw = file.read_bytes()
            if file.suffix in {".json", ".jsonl"}:
                with suppress(UnicodeDecodeError):  # Tune calls a pickle so
                    raw = _without_measures(raw)
            found[str(file.relative_to(out))] = hashlib.sha256(raw.replace(bytes(out), b"")).hexdigest()[:16]
    return found


def _without_measures(raw: bytes) -> bytes:
    def cut(node: Any) -> Any:
        return {key: value for key, value in node.items() if key not in VOLATILE}

    with suppress(json.JSONDecodeError):
        return json.dumps(json.loads(raw, object_hook=cut)).encode()
    return b"\n".join(json.dumps(json.loads(line, object_hook=cut)).encode() for line in raw.splitlines())


@dataclass(frozen=True)
class Undisturbed:
    """What comes of a scenario that nothing happens to."""

    scenario: Scenario
    contents: Mapping[str, str]
    checkpoints: Mapping[str, str]
    counts: Mapping[str, int]
    """Moments of its first process, by stage."""

    num_steps: int
    seconds: float


def undisturbed(scenario: Scenario, folder: Path) -> Undisturbed:
    """Carry it out once."""
    run = Run(scenario, folder)
    attempt = run.attempt()
    assert not any(attempt.codes), (folder / "log").read_text()
    for name in attempt.lines[-1]["modules"]:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection of garbage in a fork would copy all there is
    checkpoints = {line["checkpoint"]: line["sha256"] for line in attempt.lines if "checkpoint" in line}
    steps = [line for line in attempt.lines if "step" in line]
    counts = attempt.lines[-1]["counts"]
    return Undisturbed(scenario, scenario.look(run.out), checkpoints, counts, len(steps), attempt.seconds)


def kill_and_compare(whole: Undisturbed, folder: Path, *, num_kills: int, seed: int) -> Outcome:
    """Kill a run so often, or less where it is through before a moment comes; let it end, and compare."""
    rng, run, began_s = random.Random(f"{whole.scenario.name} {seed}"), Run(whole.scenario, folder), time.perf_counter()
    outcome = Outcome(whole.scenario.name, seed)
    kills = draw_kills(whole, rng, num_kills)
    attempts = [run.attempt(kill) for kill in kills] + [run.attempt()]
    if any(attempts[-1].codes):
        outcome.differences.append(f"ends with {attempts[-1].codes}: {(folder / 'log').read_text()[-300:]}")
    outcome.differences += differences(whole, run.out, attempts)
    for kill, (before, after) in zip(kills, pairwise(attempts), strict=True):
        if before.stage:
            process = "process" if whole.scenario.num_workers == 1 else f"worker {kill.rank}"
            again = _images_again(whole, before, after)
            outcome.kills.append(Killed(process, before.stage, before.point, round(after.seconds, 2), again))
    outcome.seconds = round(time.perf_counter() - began_s, 2)
    return outcome


def draw_kills(whole: Undisturbed, rng: random.Random, number: int) -> list[Kill]:
    """Every stage is as likely as any other, early moments of it likelier; a fifth of the kills is at any time.

    In the order of a run, for what is behind a run it does not do again.
    """
    kills = []
    for _ in range(number):
        stage = rng.choice(sorted(whole.counts)) if rng.random() > 0.2 else None
        rank = rng.randrange(whole.scenario.num_workers) if stage in OF_ALL else 0
        index = int(whole.counts.get(stage or "", 1) ** rng.random()) - 1
        kills.append(Kill(rank, stage, index, rng.uniform(0, whole.seconds)))
    return sorted(kills, key=lambda kill: ORDER.get(kill.stage, 1))


def _images_again(whole: Undisturbed, before: Attempt, after: Attempt) -> int:
    """Of the job that was being trained: from where it went on to where it had been."""
    steps = [line for line in before.lines if "step" in line]
    if not steps:
        return 0
    batch: int = whole.scenario.raw["training"]["batch_size"]
    job, reached = steps[-1]["of"], steps[-1]["step"]
    resumed = [line["step"] for line in after.lines if "step" in line and line["of"] == job]
    return max(0, reached + batch - resumed[0]) if resumed else 0


def differences(whole: Undisturbed, out: Path, attempts: Sequence[Attempt]) -> Iterator[str]:
    """A sentence for each; nothing if all is as undisturbed."""
    found = whole.scenario.look(out)
    for name in sorted(found.keys() | whole.contents.keys()):
        if found.get(name) != whole.contents.get(name):
            what = "differs" if name in found and name in whole.contents else "is missing"
            yield f"{name} {what if name in whole.contents else 'is left over'}"
    for line in (line for attempt in attempts for line in attempt.lines if "checkpoint" in line):
        if whole.checkpoints.get(line["checkpoint"]) != line["sha256"]:
            yield f"checkpoint {line['checkpoint']} differs on the way"
    every = whole.scenario.raw.get("training", {}).get("checkpoint_every_images", 0)
    for before, after in pairwise(attempts):
        again = _images_again(whole, before, after)
        # The next is begun when the one before is whole: a kill costs at most the one that was being written, too.
        if again > 2 * every:
            yield f"{again} images were trained again, and a checkpoint comes every {every}"

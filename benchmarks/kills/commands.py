"""Real commands: `rememe train` and `rememe search`, whose processes are killed from outside, several in each run.

    python -m benchmarks.kills.commands --folder /tmp/kills --out kills.jsonl

The driver, the processes that train, Ray's own (raylet, head, agents), the MLflow server. What the supervisor does not
start again, the same command does; a server's service manager starts that one some seconds later.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.kills.__main__ import append
from benchmarks.kills.processes import END_S, Process, Server, database_of, descendants, processes
from benchmarks.kills.runs import Killed, Outcome, contents, read
from benchmarks.kills.scenarios import runs_of_workloads, write_pictures
from benchmarks.kills.tracer import ROOT
from orchestrator.store.sites import ID_FILE
from workloads.places import JobDir

DRAWN = (ID_FILE, JobDir(Path()).tenant.name, JobDir(Path()).first_for.name)
"""Names of files that hold what is drawn at random, or tell which of two configurations that run at once began."""

GONE_S = 60.0
"""Within which all processes of a killed driver are gone."""

LOAD = "system/"
"""Before the names of a node's load, which is measured as often as the clock says."""

STAGES = ("starting", "training", "gathered", "sampling", "scored")
"""Of a run, as its files tell."""

KINDS = {
    "expert": "ray::ExpertActor",
    "sampling or measuring": "ray::_",
    "raylet": "/raylet/raylet",
    "head": "/gcs/gcs_server",
    "dashboard agent": "ray::DashboardAgent",
    "environment agent": "ray::RuntimeEnvAgent",
}
"""Processes by a word of their command lines; the driver is the command itself."""

FATAL = {"driver", "raylet", "head"}
"""The command ends with them."""

TRAINING = {*FATAL, "expert"}
"""What is trained ends with them."""

OFTEN = {"expert": 4, "sampling or measuring": 4, "MLflow server": 6}
WORKING = {"expert", "sampling or measuring"}
EXTRA_STARTS = 5
"""The death of an agent takes its node along, and with a last node the command ends too."""


@dataclass
class Command:
    """A command in a directory, started as often as it takes."""

    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    server: Server | None = None
    process: "subprocess.Popen[bytes] | None" = None
    family: Sequence[Process] = ()
    """Its processes at the last kill."""

    def start(self) -> None:
        """It writes to a file, for nobody reads."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *self.arguments],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def ended(self) -> int | None:
        """Its exit code, if it has one."""
        assert self.process is not None
        return self.process.poll()

    def find(self, kind: str) -> int | None:
        """One of its processes of a kind."""
        if kind == "driver":
            return self.pid
        if kind == "MLflow server":
            return self.server.pid if self.server is not None else None
        for one in descendants(self.pid):
            if KINDS[kind] in one.command:
                return one.pid
        return None

    @property
    def pid(self) -> int:
        """Of the driver."""
        assert self.process is not None
        return self.process.pid

    def kill(self, kind: str, pid: int) -> None:
        """One of its processes, just found."""
        if kind == "MLflow server" and self.server is not None:
            self.server.kill()
        else:
            os.kill(pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code."""
        assert self.process is not None
        return self.process.wait(END_S)


def stage_of(folder: Path) -> str:
    """How far a run is, as its files tell."""
    runs = folder / "runs"
    if list(runs.glob("*/scores.json")):
        return "scored"
    if list(runs.glob("*/samples/*/*.npy")):
        return "sampling"
    if list(runs.glob("*/ensemble/ensemble.json")):
        return "gathered"
    if list(runs.glob("store/*/checkpoints/*")) or list(runs.glob("store/*/result.json")):
        return "training"
    return "starting"


def images_of(folder: Path) -> dict[str, int]:
    """By expert, as its curve tells."""
    found = {}
    for file in (folder / "runs" / "store").glob("*/records.jsonl"):
        lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        found[file.parent.name] = json.loads(lines[-1])["images_seen"] if lines else 0
    return found


def checkpoints_of(folder: Path) -> dict[str, int]:
    """Images at the last checkpoint, by expert."""
    found: dict[str, int] = {}
    for file in (folder / "runs" / "store").glob("*/checkpoints/[0-9]*/manifest.json"):
        key = file.parents[2].name
        found[key] = max(found.get(key, 0), int(file.parent.name))
    return found


def kept(folder: Path) -> dict[str, str]:
    """What must be the same in the end: experts, ensembles, samples, scores, and how often MLflow has which rows."""
    parts = ("store/", "/ensemble/", "/samples/", "/scores.json")
    found = {
        name: sha
        for name, sha in contents(folder / "runs").items()
        if any(part in name for part in parts) and not name.endswith(DRAWN)
    }
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute(
            "select identity.value, runs.status, metrics.key, count(*), count(distinct metrics.step) from runs "
            "join tags identity on identity.run_uuid = runs.run_uuid and identity.key = 'rememe.identity' "
            "join metrics on metrics.run_uuid = runs.run_uuid where runs.lifecycle_stage = 'active' "
            "group by runs.run_uuid, metrics.key"
        ).fetchall()
    for identity, status, key, number, distinct in rows:
        if key.startswith(LOAD) and number == distinct:
            continue
        name = f"MLflow {identity} {key}"
        found[f"a second {name}" if name in found else name] = f"{status} {number} {distinct}"
    return found


@dataclass(frozen=True)
class Scenario:
    """A command and its description."""

    name: str
    arguments: tuple[str, ...]
    raw: Mapping[str, Any]
    is_served: bool = False
    """MLflow is a server; or rememe opens the database itself."""


def scenarios(data: Path) -> list[Scenario]:
    """Those of scenarios.py, with enough training for a kill to meet it; and a study."""
    made = []
    for one in runs_of_workloads(data):
        training = one.raw["training"] | {"images": 3200, "checkpoint_every_images": 160, "log_every_images": 80}
        execution = one.raw.get("execution", {}) | {"max_attempts": 20}
        raw = {**one.raw, "training": training, "execution": execution}
        made.append(Scenario(one.name, ("train", "run.yaml"), raw))
    base, experts = made[1].raw, [{"specialisation": 0.2}, {"specialisation": 0.2}]
    study = {
        "name": "study",
        "base": {**base, "data": base["data"] | {"held_out": 10}, "strategy": {"kind": "meme", "experts": experts}},
        "space": {"strategy.experts.*.specialisation": {"each": [0.2, 0.9]}},
        "sampler": "grid",
        "budget": {"num_configurations": 3},
        "ladder": {"quick": {"num_samples": 8, "sampling": {"num_steps": 2}}, "finalists": 1},
    }
    served = replace(made[0], name=f"{made[0].name}, MLflow served", is_served=True)
    return [*made, Scenario("study", ("search", "run.yaml"), study), served]


def prepared(scenario: Scenario, folder: Path, stack: ExitStack) -> Command:
    """A directory in which it can be started."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(json.dumps(scenario.raw))
    server = stack.enter_context(Server(folder)) if scenario.is_served else None
    uri = database_of(folder) if server is None else server.uri
    return Command(scenario.arguments, folder, {"MLFLOW_TRACKING_URI": uri}, server)


def undisturbed(scenario: Scenario, folder: Path) -> dict[str, str]:
    """What it leaves."""
    with ExitStack() as stack:
        command = prepared(scenario, folder, stack)
        command.start()
        code = command.wait()
    assert code == 0, (folder / "log").read_text()
    return kept(folder)


def kill_and_compare(
    scenario: Scenario, folder: Path, whole: Mapping[str, str], *, num_kills: int, seed: int
) -> Outcome:
    """Kill processes of a run, one after the other, so many; let it end; compare."""
    rng, began_s = random.Random(f"{scenario.name} {seed}"), time.monotonic()
    outcome, code = Outcome(f"rememe {scenario.name}", seed), -1
    with ExitStack() as stack:
        command = prepared(scenario, folder, stack)
        for _ in range(num_kills + EXTRA_STARTS):
            command.start()
            while len(outcome.kills) < num_kills and (killed := kill_one(command, rng)) is not None:
                outcome.kills.append(killed)
                print(killed, flush=True)
                if killed.process in FATAL:
                    outcome.differences += leftovers(command)
                    break
            if (code := command.wait()) == 0:
                break
        if code == 0 and command.server is not None:
            # What was kept while no server answered, the next run writes.
            command.server.wait()
            command.start()
            code = command.wait()
    outcome.differences += [f"ends with {code}"] if code else differences(whole, kept(folder))
    outcome.seconds = round(time.monotonic() - began_s, 1)
    return outcome


def kill_one(command: Command, rng: random.Random) -> Killed | None:
    """One of its processes once it has come as far as a stage drawn at random; None if it has ended before."""
    aim = rng.choice(STAGES)
    while command.ended is None and STAGES.index(stage_of(command.folder)) < STAGES.index(aim):
        time.sleep(0.2)
    while True:
        time.sleep(rng.uniform(0.5, 3))
        there = {kind: pid for kind in ("driver", "MLflow server", *KINDS) if (pid := command.find(kind)) is not None}
        if command.ended is not None:
            return None
        stage = stage_of(command.folder)
        if not there.keys() & WORKING and rng.random() > 0.1:  # or most would fall while it starts
            continue
        (kind,) = rng.choices(list(there), [OFTEN.get(kind, 1) for kind in there])
        reached, safe = images_of(command.folder), checkpoints_of(command.folder)
        command.family = descendants(command.pid)
        with suppress(ProcessLookupError):
            command.kill(kind, there[kind])
            again = max((reached[key] - images for key, images in safe.items() if key in reached), default=0)
            return Killed(kind, stage, "any time", images_again=max(0, again) if kind in TRAINING else 0)


def leftovers(command: Command) -> list[str]:
    """A sentence for each process that is still there, so long after the command lost its driver, node or head."""
    command.wait()
    deadline_s = time.monotonic() + GONE_S
    while time.monotonic() < deadline_s:
        table = processes()
        left = [one for one in command.family if one.pid in table and table[one.pid].command == one.command]
        left = [one for one in left if table[one.pid].state != "Z"]
        if not left:
            return []
        time.sleep(0.5)
    return [f"{one.command[:60]} is there {GONE_S:g} s after its driver" for one in left]


def differences(whole: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A sentence for each."""
    names = sorted(whole.keys() | found.keys())
    return [
        f"{name} is {found.get(name, 'missing')}, and {whole.get(name, 'not there')} undisturbed"
        for name in names
        if whole.get(name) != found.get(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-run", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1, help="of each scenario")
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    parser.add_argument("--folder", type=Path, required=True, help="undisturbed runs are kept there")
    options = parser.parse_args()
    for scenario in scenarios(write_pictures(options.folder.absolute() / "data")):
        if scenario.name not in (options.only or scenario.name):
            continue
        calm = options.folder.absolute() / scenario.name
        if not (calm / "kept.json").exists():
            shutil.rmtree(calm, ignore_errors=True)
            (calm / "kept.json").write_text(json.dumps(undisturbed(scenario, calm)))
        whole = json.loads((calm / "kept.json").read_text())
        done = sum(line["scenario"] == f"rememe {scenario.name}" for line in read(options.out))
        for seed in range(done, done + options.runs):
            folder = options.folder.absolute() / f"{scenario.name}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            append(options.out, kill_and_compare(scenario, folder, whole, num_kills=options.per_run, seed=seed))


if __name__ == "__main__":
    main()

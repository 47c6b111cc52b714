"""Jobs on a cluster with token authentication: MEME, a remix and a study, stopped and gone on with, a node killed."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from waiting import PATIENCE_S, wait_until

from orchestrator.plan.jobs import make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.places import SharedDir
from workloads.training.job import train_job
from workloads.training.result import completed

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node in the foreground (--block), so that it ends with us; yields the environment a user needs."""
    gcs, dashboard, client, agent = free_ports(4)
    scratch = tempfile.mkdtemp(prefix="rr", dir="/tmp")  # socket paths must be short
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": scratch,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HEAD": f"127.0.0.1:{gcs}",  # not a variable of Ray's: only doctor is told
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=1", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1"]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(process, environment, log)
        yield environment
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_until_up(process: "subprocess.Popen[bytes]", environment: dict[str, str], log: Path) -> None:
    command = [str(BIN / "ray"), "job", "list"]

    def is_up() -> bool:
        listed = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_S, check=False)
        return listed.returncode == 0

    wait_until(is_up, log.read_text, process=process, interval_s=1)


@pytest.fixture
def spare_node(head: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """spare_node(): two places more, of a kind that experts can ask for; call what it returns to kill the node."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> Callable[[], None]:
        command = [str(BIN / "ray"), "start", f"--address={head['HEAD']}", "--block", "--num-cpus=2"]
        command += ["--resources", '{"spare": 2}', "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        log = tmp_path / f"node-{len(started)}.log"
        with log.open("w") as file:
            started.append(subprocess.Popen(command, env=head, stdout=file, stderr=subprocess.STDOUT))
        node = started[-1]
        wait_until(lambda: "Ray runtime started" in log.read_text(), log.read_text, process=node, interval_s=0.2)
        return lambda: os.kill(_raylet_of(node.pid), signal.SIGKILL)

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def _raylet_of(parent: int) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_raylet = b"/raylet/raylet" in (entry / "cmdline").read_bytes()
            if is_raylet and f"\nPPid:\t{parent}\n" in (entry / "status").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"process {parent} has no raylet")


@pytest.fixture
def submit(head: dict[str, str], tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """submit(description, *overrides): trained as a job of Ray's own command; its results are under tmp_path/runs."""
    project = tmp_path / "project"
    project.mkdir()

    def run(description: dict[str, Any], *overrides: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        (project / "run.yaml").write_text(yaml.safe_dump(description))
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--"]
        command += ["rememe", "train", "run.yaml", *overrides, "--runs-dir", str(tmp_path / "runs")]
        return subprocess.run(
            command, cwd=project, env=head | changes, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    return run


def rememe(head: dict[str, str], *arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The command as a user who has the address and the token in the environment runs it."""
    command = [str(BIN / "rememe"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=head, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def begin(head: dict[str, str], description: dict[str, Any], runs: Path) -> str:
    """Submit a description; the job's id."""
    file = runs.with_name(f"{description['name']}.yaml")
    file.write_text(yaml.safe_dump(description))
    begun = rememe(head, "submit", file.name, "--runs-dir", runs, "--no-wait", cwd=file.parent)
    assert begun.returncode == 0, begun.stderr
    return begun.stdout.split()[1].rstrip(";")


def first_file(runs: Path, pattern: str) -> Path:
    """The first such file of a run's store."""
    return wait_until(lambda: sorted((runs / "store").glob(pattern)))[0]


def test_a_remix_outlives_its_node_while_a_study_finishes_beside_it(
    head: dict[str, str],
    spare_node: Callable[[], Callable[[], None]],
    tiny_run: dict[str, Any],
    tmp_path: Path,
) -> None:
    kill = spare_node()
    execution = {"num_workers": 2, "max_attempts": 1, "resources": {"custom": {"spare": 1}}}
    remix = tiny_run | {
        "name": "tiny-remix",
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4},
        "execution": execution,
        "training": tiny_run["training"] | {"images": 2048},
    }
    experts = [{"specialisation": 0.8}, {"specialisation": 0.2}]
    study = {
        "name": "tiny-study",
        "base": tiny_run | {"strategy": {"kind": "meme", "experts": experts}},
        "space": {"strategy.experts.0.model.attention_share": {"choice": [["1/4"], ["3/4"]]}},
        "sampler": "grid",
        "budget": {"num_configurations": 2},
    }
    job, beside = begin(head, remix, tmp_path / "remix"), begin(head, study, tmp_path / "study")
    first_file(tmp_path / "remix", "*/checkpoints/[0-9]*")
    kill()
    spare_node()
    ended = rememe(head, "logs", job, "--follow", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "remix [0, 1000): restarting (its node left the cluster)" in ended.stdout
    assert "fd-fashion-cnn = " in ended.stdout
    ended = rememe(head, "logs", beside, "--follow", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout
    trials = Ledger(RunsDir(tmp_path / "study"), "tiny-study").trials()
    assert [(trial.number, trial.state) for trial in trials] == [(0, "finished"), (1, "finished")]


def test_a_submitted_run_is_stopped_with_a_checkpoint_and_goes_on_to_the_same_weights(
    head: dict[str, str],
    submit: Callable[..., "subprocess.CompletedProcess[str]"],
    tiny_run: dict[str, Any],
    tmp_path: Path,
) -> None:
    training = tiny_run["training"] | {"images": 7_680, "checkpoint_every_images": 1_000_000}
    long = tiny_run | {"name": "long", "training": training, "strategy": {"kind": "single"}}
    runs = tmp_path / "runs"
    job = begin(head, long, runs)
    first_file(runs, "*/records.jsonl")
    seen = rememe(head, "status", job, cwd=tmp_path)  # from its own runs directory, which nobody has named here
    assert re.search(r"long-\w{8} \(single\): running.*job " + job, seen.stdout, re.DOTALL), seen.stdout + seen.stderr
    # The driver hears of the first record a little later than it is written.
    in_training = re.compile(r"expert_00 +\[0, 1000\) +training +[\d.]+ +[\d,]+ +\d+% ")
    wait_until(lambda: in_training.search(rememe(head, "status", job, cwd=tmp_path).stdout))
    assert "long-" in rememe(head, "status", "--runs-dir", runs, cwd=tmp_path).stdout
    assert "writes checkpoints and ends" in rememe(head, "stop", job, cwd=tmp_path).stdout
    followed = rememe(head, "logs", job, "--follow", cwd=tmp_path)
    assert followed.returncode != 0
    assert "expert_00 [0, 1000): stopped" in followed.stdout
    (checkpoint,) = (runs / "store").glob("*/checkpoints/*")
    listed = json.loads(rememe(head, "jobs", "--json", cwd=tmp_path).stdout)
    assert [entry["status"] for entry in listed if entry["job_id"] == job] == ["STOPPED"]
    assert "had ended already" in rememe(head, "stop", job, cwd=tmp_path).stdout

    again = submit(long)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "fd-fashion-cnn = " in again.stdout
    assert "succeeded" in again.stdout + again.stderr
    (run_dir,) = runs.glob("long-*")
    assert (run_dir / "grid.png").is_file()
    (records,) = (runs / "store").glob("*/records.jsonl")
    images = [json.loads(line)["images_seen"] for line in records.read_text().splitlines()]
    assert int(checkpoint.name) + 64 in images  # it went on from there: records are 64 images apart
    assert images == sorted(set(images))
    config = RunConfig.model_validate(long)
    dataset = ensure_prepared(config.data, tmp_path / "data")
    (expert,) = make_plan(config, dataset.spec(config.data)).jobs
    result = completed(SharedDir(runs).job(expert.key).path)
    assert result is not None
    num_threads = torch.get_num_threads()
    alone = train_job(expert.job, dataset.path, tmp_path / "alone", num_threads=1)
    torch.set_num_threads(num_threads)
    assert result.weights_sha256 == alone.weights_sha256


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit", "demo-mem", "--runs-dir", "/shared"], "did you mean 'demo-meme'?"),
        (["submit", "demo-meme", "--runs-dir", "runs"], "--runs-dir is runs, which in a job is Ray's temporary copy"),
        (["logs", "nothing"], "has no job 'nothing'"),
        (["jobs", "--address", "http://127.0.0.1:9"], "the job server at http://127.0.0.1:9 does not answer"),
    ],
)
def test_mistakes_about_jobs_are_one_sentence(
    head: dict[str, str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    result = rememe(head, *arguments, cwd=tmp_path)
    assert result.returncode in {1, 2}
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert expected in sentence


def test_a_job_that_cannot_run_says_why_and_fails(
    submit: Callable[..., "subprocess.CompletedProcess[str]"], tiny_run: dict[str, Any]
) -> None:
    result = submit(tiny_run, "execution.resources.num_cpus=512")
    assert result.returncode != 0
    assert "execution.resources.num_cpus is 512, but no node has more than 1" in result.stdout + result.stderr


def test_without_the_token_nothing_is_submitted(
    submit: Callable[..., "subprocess.CompletedProcess[str]"], tiny_run: dict[str, Any]
) -> None:
    result = submit(tiny_run, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert result.returncode != 0
    assert "fd-fashion-cnn" not in result.stdout


def test_doctor_looks_at_the_cluster_and_names_a_wrong_token(head: dict[str, str], tmp_path: Path) -> None:
    # A tracker that refuses at once costs no database, and shows that its password is not printed.
    tracker = {"MLFLOW_TRACKING_URI": "http://ann:s3cr3tword@127.0.0.1:9"}
    arguments = ["doctor", "demo-meme", "execution.resources.num_gpus=1", "--address", head["HEAD"]]
    result = rememe(head | tracker, *arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    for said in ("packages     as they should be on 1 of 1 nodes", "clocks       as they", "token        as they"):
        assert any(line.startswith(f"ok      {said}") for line in lines), result.stdout
    assert any(re.match(r"ok      dashboard    127.0.0.1:\d+: nothing listens beyond", line) for line in lines)
    problems = [line for line in lines if not line.startswith("ok ")]
    assert [line.split()[1] for line in problems] == ["mlflow", "config"], result.stdout
    assert "execution.resources.num_gpus is 1, but no node has more than 0" in problems[1]
    assert "s3cr3tword" not in result.stdout + result.stderr
    wrong = rememe(head | tracker | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, *arguments, cwd=tmp_path)
    assert wrong.returncode == 1
    (ray_line,) = [line for line in wrong.stdout.splitlines() if line.split()[1] == "ray"]
    assert "the token are those of the cluster" in ray_line
    assert "Traceback" not in wrong.stderr

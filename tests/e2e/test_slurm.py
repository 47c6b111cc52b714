"""clusters/slurm.sbatch on a real Slurm: two nodes of this machine, with daemons, keys and directories of their own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_until

CLUSTERS = Path(__file__).parents[2] / "clusters"
SCRIPT = CLUSTERS / "slurm.sbatch"
PROGRAMS = {
    name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
}

needs_slurm = pytest.mark.skipif(
    None in PROGRAMS.values(), reason=f"Slurm is not installed here (apt install slurm-wlm munge): {PROGRAMS}"
)
pytestmark = [pytest.mark.e2e, pytest.mark.ray]

CONFIGURATION = """
ClusterName=rememe
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES
"""
# cred_expire: a job that was requeued waits for its credential to expire, two minutes if nothing is said.


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """The commands of Slurm, as a user with an activated environment gives them in `folder`."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = {**variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def __call__(self, *command: str) -> str:
        result = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def submit(self, *arguments: str) -> str:
        # Two jobs at once have two cores of this machine, not the eight per node that the script asks for.
        return self("sbatch", "--parsable", "--cpus-per-task=1", str(SCRIPT), *arguments)

    def log(self, job: str) -> str:
        file = self.folder / f"rememe-{job}.log"
        return file.read_text() if file.is_file() else ""

    def wait_for_log(self, job: str, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.log(job)), lambda: f"{pattern!r} is not in:\n{self.log(job)}")

    def wait_for_end(self, job: str) -> dict[str, str]:
        """What Slurm says of a job that has ended."""

        def job_now() -> dict[str, str]:
            return dict(pair.split("=", 1) for pair in self("scontrol", "show", "job", job).split() if "=" in pair)

        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        wait_until(lambda: job_now()["JobState"] in over, lambda: f"{job_now()}\n{self.log(job)}")
        return job_now()


def processes_of(job: str) -> list[str]:
    """Command lines of all that runs on this machine with the job's number in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, user_variables: dict[str, str]) -> Iterator[Slurm]:
    """A two-node Slurm for the module."""
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge's socket needs a short path ...
    root.chmod(0o711)  # ... and one that all may follow
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (root / "state").mkdir()
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    host = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(CONFIGURATION.format(root=root, user=user, host=host, ports=free_ports(3)))
    munge = {name: f"--{name}-file={root}/munge.{name}" for name in ("key", "pid", "seed", "log")}
    commands = [
        [PROGRAMS["munged"], "--foreground", f"--socket={root}/munge.socket", *munge.values()],
        [PROGRAMS["slurmctld"], "-D", "-f", f"{root}/slurm.conf"],
        *([PROGRAMS["slurmd"], "-D", "-N", node, "-f", f"{root}/slurm.conf"] for node in ("n1", "n2")),
    ]
    slurm = Slurm(tmp_path_factory.mktemp("slurm"), user_variables | {"SLURM_CONF": f"{root}/slurm.conf"})
    log = (root / "log").open("w")
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=slurm.variables, stdout=log, stderr=log))
            if command is commands[0]:
                wait_until((root / "munge.socket").exists, (root / "log").read_text)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]

        def up() -> bool:
            asked = subprocess.run(idle, env=slurm.variables, capture_output=True, text=True, check=False)
            return asked.stdout.strip() == "2"

        wait_until(up, (root / "log").read_text)
        yield slurm
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        log.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def user_variables() -> dict[str, str]:
    """What a shell has, without what pytest set for its own Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}


def scratch_of(job: str) -> list[Path]:
    return list(Path("/tmp").glob(f"rememe-{job}-*"))


@needs_slurm
def test_of_two_jobs_on_the_same_nodes_one_is_cancelled_the_other_requeued_and_ends(
    slurm: Slurm, tiny_run: dict[str, Any]
) -> None:
    experts = [{"specialisation": 0.8}, {"specialisation": 0.2}]
    # Checkpoints are written only when a run is stopped, so what it goes on from was written then.
    training = tiny_run["training"] | {"images": 6_000, "checkpoint_every_images": 1_000_000}
    run = tiny_run | {"name": "long", "strategy": {"kind": "meme", "experts": experts}, "training": training}
    (slurm.folder / "long.yaml").write_text(yaml.safe_dump(run))
    job = slurm.submit("train", "long.yaml", "--no-evaluate")
    cancelled = slurm.submit("train", "long.yaml", "--no-evaluate", "--runs-dir", "other")
    slurm.wait_for_log(cancelled, r"training \(pid")
    assert len(scratch_of(cancelled)) == 2
    slurm("scancel", cancelled)
    assert slurm.wait_for_end(cancelled)["JobState"] == "CANCELLED"
    wait_until(lambda: not processes_of(cancelled), lambda: "\n".join(processes_of(cancelled)))
    assert not scratch_of(cancelled)

    slurm.wait_for_log(job, "images/s")
    slurm("scancel", "--batch", "--signal=USR1", job)  # what Slurm sends before the time limit
    slurm.wait_for_log(job, "checkpoints are written")
    checkpoints = {file.parents[1].name: int(file.name) for file in slurm.folder.glob("runs/store/*/checkpoints/*")}
    ended = slurm.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), slurm.log(job)
    assert checkpoints
    for key, images_before in checkpoints.items():
        lines = (slurm.folder / "runs" / "store" / key / "records.jsonl").read_text().splitlines()
        images = [json.loads(line)["images_seen"] for line in lines]
        assert images == sorted(set(images))  # nothing was trained twice
        assert 0 < images_before < images[-1] == 6_000
    assert len(list(slurm.folder.glob("runs/store/*/result.json"))) == 2
    wait_until(lambda: not processes_of(job), lambda: "\n".join(processes_of(job)))
    assert not scratch_of(job)


@pytest.mark.parametrize("file", sorted([SCRIPT, *CLUSTERS.glob("*.sh")]), ids=lambda file: file.name)
def test_shell_scripts_are_clean(file: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([str(shellcheck), str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_signal_before_the_time_limit_is_the_one_that_is_heard() -> None:
    text = SCRIPT.read_text()
    (sent,) = re.findall(r"^#SBATCH --signal=B:(\w+)@\d+$", text, flags=re.MULTILINE)
    assert f"trap 'requeue=yes; stop' {sent}" in text
    assert "\n#SBATCH --requeue\n" in text

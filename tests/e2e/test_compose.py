"""clusters/compose.yaml without containers: every service as a process, all on this host's address."""

import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import PATIENCE_S, wait_until

COMPOSE = Path(__file__).parents[2] / "clusters" / "compose.yaml"
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
BIN = Path(sys.executable).parent
PORTS = (6379, 8265, 5000, 5432, 7070)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.ray,
    pytest.mark.skipif(
        not (POSTGRES / "initdb").is_file(), reason=f"PostgreSQL is not in {POSTGRES} (apt install postgresql)"
    ),
]

# What several nodes on one host need, where containers have addresses of their own.
ONE_HOST = ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]


def own_address() -> str:
    """What other hosts call this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Services:
    """compose.yaml with the variables a user exports, and the ports and names of this host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = own_address()
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        exported = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "PASSWORD": secrets.token_hex(16)}
        text = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: exported[found[1]], COMPOSE.read_text())
        text = re.sub(rf"\b({'|'.join(map(str, PORTS))})\b", lambda found: str(self.ports[int(found[1])]), text)
        self.described: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
        self.text = text
        self.processes: list[subprocess.Popen[bytes]] = []

    def here(self, value: str) -> str:
        """A value of the file with names and directories of this host."""
        value = re.sub(rf"\b({'|'.join(self.described)}):(?=\d)", f"{self.address}:", value)
        return value.replace("/runs", str(self.root / "runs"))

    def command(self, name: str) -> list[str]:
        return shlex.split(self.here(self.described[name]["command"]))

    def variables(self, name: str, process: str = "") -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))}
        said = {key: self.here(str(value)) for key, value in self.described[name]["environment"].items()}
        # The last two as the image has them.
        image = {"REMEME_RUNS_DIR": str(self.root / "runs"), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
        # A container has a disk of its own.
        said |= {"REMEME_CACHE_DIR": str(self.root / f"disk-{process or name}")}
        return kept | image | said | {"PATH": f"{BIN}:{POSTGRES}:{os.environ['PATH']}"}

    def log(self, process: str) -> Path:
        return self.root / f"{process}.log"

    def start(self, name: str, command: list[str], process: str = "", **options: Any) -> "subprocess.Popen[bytes]":
        variables = self.variables(name, process)
        if command[0] == "ray":
            # Nodes that share a directory remove each other's packages.
            command = [*command, *ONE_HOST, f"--temp-dir={self.root / (process or name)}"]
        with self.log(process or name).open("wb") as log:
            started = subprocess.Popen(command, env=variables, stdout=log, stderr=log, **options)
        self.processes.append(started)
        return started

    def listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.ports[port])) == 0

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


def start_postgres(services: Services) -> None:
    """As the image's entry point does: a database of this name, user and password, then the service's command."""
    said = services.described["postgres"]["environment"]
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=services.root))
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses root
    if user:
        shutil.chown(directory, user)
    secret = directory.with_suffix(".password")
    secret.write_text(said["POSTGRES_PASSWORD"])
    secret.chmod(0o644)
    data = directory / "data"
    initdb = [f"--username={said['POSTGRES_USER']}", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(
        [POSTGRES / "initdb", *initdb, data], user=user, cwd=directory, check=True, stdout=subprocess.DEVNULL
    )
    place = ["-D", str(data), "-k", str(directory), "-c", "listen_addresses=*"]
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all all scram-sha-256\n")
    process = services.start("postgres", [*services.command("postgres"), *place], user=user, cwd=directory)
    login = services.variables("postgres") | {"PGHOST": services.address, "PGPASSWORD": said["POSTGRES_PASSWORD"]}

    def ready(database: str) -> bool:
        check = shlex.split(services.described["postgres"]["healthcheck"]["test"].replace("mlflow", database))
        return subprocess.run(check, env=login, capture_output=True, check=False).returncode == 0

    wait_until(lambda: ready("postgres"), services.log("postgres").read_text, process=process, interval_s=0.5)
    port = f"--port={services.ports[5432]}"
    create = ["createdb", port, f"--username={said['POSTGRES_USER']}", said["POSTGRES_DB"]]
    subprocess.run(create, env=login, check=True)
    assert ready("mlflow")


def start_s3(services: Services) -> None:
    """moto's server instead of the gateway, and the bucket that the volume of the service is."""
    import boto3

    server = [str(BIN / "moto_server"), "-H", services.address, "-p", str(services.ports[7070])]
    process = services.start("s3", server)
    wait_until(lambda: services.listens(7070), services.log("s3").read_text, process=process, interval_s=0.5)
    (volume,) = services.described["s3"]["volumes"]
    bucket = Path(volume.split(":")[1]).name
    boto3.client(
        "s3",
        endpoint_url=f"http://{services.address}:{services.ports[7070]}",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        region_name="us-east-1",
    ).create_bucket(Bucket=bucket)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    root = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # Ray's sockets need a short path
    root.chmod(0o755)
    services = Services(root)
    try:
        start_s3(services)
        head = services.start("head", [*services.command("head"), f"--ray-client-server-port={free_ports(1)[0]}"])
        start_postgres(services)
        mlflow = services.start("mlflow", services.command("mlflow"))
        wait_until(lambda: services.listens(6379), services.log("head").read_text, process=head, interval_s=0.5)
        for number in range(services.described["worker"]["deploy"]["replicas"]):
            services.start("worker", services.command("worker"), process=f"worker{number}")
        wait_until(lambda: services.listens(8265), services.log("head").read_text, process=head, interval_s=0.5)
        wait_until(lambda: services.listens(5000), services.log("mlflow").read_text, process=mlflow, interval_s=0.5)
        yield services
    finally:
        services.stop()
        shutil.rmtree(root, ignore_errors=True)


def test_a_run_is_submitted_and_its_results_are_in_s3_and_mlflow(
    services: Services, tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = re.findall(r"exec head (rememe submit .+)", services.text)
    training = tiny_run["training"] | {"images": 256}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_run | {"training": training}))
    command = shlex.split(services.here(told).replace("demo-meme", "tiny.yaml"))
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=services.variables("head"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "fd-fashion-cnn = " in result.stdout

    for name, value in services.variables("head").items():
        if name.startswith(("AWS_", "MLFLOW_")):
            monkeypatch.setenv(name, value)
    import boto3
    from mlflow import MlflowClient

    listed = boto3.client("s3").list_objects_v2(Bucket="rememe")["Contents"]
    kept = [entry["Key"] for entry in listed]
    assert sum(key.startswith("storage/store/") and key.endswith("/index.json") for key in kept) == 4
    assert sum(re.fullmatch(r"storage/tiny-\w{8}/ensemble/ensemble.json", key) is not None for key in kept) == 1
    client = MlflowClient()
    experiment = client.get_experiment_by_name("rememe")
    found = client.search_runs([experiment.experiment_id])
    # Whether there is anything to tell of nodes depends on how long it takes.
    runs = [run for run in found if run.info.run_name not in {"pictures", "nodes"}]
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert "grid.png" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert any(key.startswith("mlflow/") and key.endswith("grid.png") for key in kept)

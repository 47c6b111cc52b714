"""MLflow as teams run it: a server with PostgreSQL behind it and artifacts over HTTP; ten drivers, and an outage."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from waiting import PATIENCE_S, wait_until

from orchestrator.plan.errors import TrackingError
from orchestrator.tracking.address import count_experiments
from orchestrator.tracking.tracker import Tracker

psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2, of the extra rememe[postgres], is not installed")

pytestmark = pytest.mark.e2e

NUM_DRIVERS, NUM_STEPS = 10, 40
CURVES = ("loss", "images_per_s", "learning_rate", "loader_wait_share")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None
"""PostgreSQL refuses to run as root."""

DRIVERS = """
import multiprocessing, sys, time
from pathlib import Path
import mlflow
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.tracker import Tracker
from workloads.training.records import TrainingRecord

runs, num_drivers, num_steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tracking.RETRY_INTERVAL_S, tracking.FLUSH_INTERVAL_S = 1.0, 0.5

def record(step, written_s):
    return TrainingRecord(step, 1 / step, 10.0, 1e-3, 0.0, written_s=written_s + step)

def drive(number):
    with Tracker(runs) as tracker:
        study = tracker.study("ten", {"sampler": "grid"})
        run = tracker.configuration(f"run-{number}", str(number) * 16, {"seed": number}, "seed: 0", parent=study)
        experts = [tracker.expert(run, key, key, key, {"key": key}) for key in (f"own-{number}", "shared")]
        for step in range(1, num_steps + 1):
            for expert in experts:
                expert.records([record(step, 1e9)])
            if step == num_steps // 2:
                tracker.flush()
                (runs / f"half-{number}").touch()
                while not (runs / "down").exists():
                    time.sleep(0.05)
            time.sleep(0.02)
        for expert in experts:  # as a driver does in the end, and as an expert does that goes on from a checkpoint
            expert.records([record(step, 2e9) for step in range(1, num_steps + 1)])
        run.log_metrics({"score": float(number)})
        run.log_artifact(runs / "grid.png", "figures")
        for tracked in (*experts, run):
            tracked.finish("FINISHED")
        while not (runs / "up").exists():
            time.sleep(0.05)

# Forked, for MLflow takes seconds to import.
drivers = [multiprocessing.get_context("fork").Process(target=drive, args=(i,)) for i in range(num_drivers)]
for driver in drivers:
    driver.start()
for driver in drivers:
    driver.join()
sys.exit(sum(driver.exitcode != 0 for driver in drivers))
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address of an empty database on a server of its own."""
    if not PROGRAMS:
        pytest.skip("no PostgreSQL under /usr/lib/postgresql; apt-get install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not below pytest's directory, where that user may not go.
    folder = Path(tempfile.mkdtemp(prefix="rememe-pg-"))
    (folder / "password").write_text("s3cret")
    if USER:
        for path in (folder, folder / "password"):
            shutil.chown(path, USER)
    common: dict[str, Any] = {"cwd": folder, "user": USER, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    init = ["-D", folder / "data", "-U", "rememe", "-A", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"]
    subprocess.run([PROGRAMS[-1] / "initdb", *init], check=True, **common)
    options = ["-D", folder / "data", "-p", str(port), "-k", folder, "-c", "fsync=off"]
    process = subprocess.Popen([PROGRAMS[-1] / "postgres", *options], **common)
    address = f"postgresql+psycopg2://rememe:s3cret@127.0.0.1:{port}/postgres"
    wait_until(lambda: is_up(address))
    yield address
    process.send_signal(signal.SIGINT)  # SIGTERM would wait for MLflow's idle connections
    process.wait()
    shutil.rmtree(folder)


def is_up(address: str) -> bool:
    try:
        rows(address, "SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True


def rows(address: str, query: str) -> list[tuple[Any, ...]]:
    """What the database holds, read past MLflow."""
    with closing(psycopg2.connect(address.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_ten_drivers_and_a_server_that_is_killed(
    postgres: str,
    tmp_path: Path,
    new_tracking_server: Callable[..., Any],
    user_environment: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = new_tracking_server(postgres)
    server.start()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "grid.png").write_bytes(b"picture")
    drivers = subprocess.Popen(
        [sys.executable, "-c", DRIVERS, str(runs), str(NUM_DRIVERS), str(NUM_STEPS)],
        env=user_environment({"MLFLOW_TRACKING_URI": server.uri}),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(runs.glob("half-*"))) == NUM_DRIVERS)
    (runs / "down").touch()
    time.sleep(0.3)  # in the middle of what is being written
    server.kill()
    time.sleep(2)
    server.start()
    (runs / "up").touch()
    told = drivers.communicate(timeout=PATIENCE_S)[1]
    assert drivers.returncode == 0, told
    # What a driver had no time for, the next one writes.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with Tracker(runs):
        pass
    assert not list((runs / "spool").glob("notes-*")), told

    found = rows(postgres, "SELECT name, status FROM runs WHERE lifecycle_stage = 'active'")
    names = ["ten", "shared", *(f"{kind}-{number}" for kind in ("run", "own") for number in range(NUM_DRIVERS))]
    assert Counter(found) == Counter((name, "KILLED" if name == "ten" else "FINISHED") for name in names)

    there = Counter(rows(postgres, "SELECT name, key, step FROM metrics JOIN runs USING (run_uuid)"))
    experts = ["shared", *(f"own-{number}" for number in range(NUM_DRIVERS))]
    expected = Counter((name, key, step) for name in experts for key in CURVES for step in range(1, NUM_STEPS + 1))
    expected.update((f"run-{number}", "score", 0) for number in range(NUM_DRIVERS))
    assert there == expected

    client = MlflowClient(tracking_uri=server.uri)
    for run_id, name in rows(postgres, "SELECT run_uuid, name FROM runs WHERE name LIKE 'run-%'"):
        assert {file.path for file in client.list_artifacts(run_id)} == {"config.yaml", "figures"}, name
        assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/grid.png"]
        assert Path(client.download_artifacts(run_id, "figures/grid.png", str(tmp_path))).read_bytes() == b"picture"


def test_a_wrong_password_is_named_at_once(postgres: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(TrackingError, match="refuses the user or password") as told:
        count_experiments(postgres.replace("s3cret", "wr0ng"))
    assert "wr0ng" not in str(told.value)
    assert time.monotonic() - started_s < 20


def test_a_database_that_is_not_there_is_named(postgres: str) -> None:
    with pytest.raises(TrackingError, match=r"is not at .*; correct MLFLOW_TRACKING_URI or create it"):
        count_experiments(f"{postgres}x")


def test_a_user_who_may_only_read_is_named(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Straight to the database, without a server between."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{postgres}?options=-cdefault_transaction_read_only%3Don")
    with Tracker(tmp_path / "runs") as tracker:
        tracker.configuration("tiny", "f" * 16, {"seed": 0}, "seed: 0")
    told = capsys.readouterr().err
    assert "cannot be written; make it writable" in told
    assert "s3cret" not in told

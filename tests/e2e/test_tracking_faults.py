"""What MLflow refuses, loses, or is not fit to take: each named in a sentence, and every row is there once."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.plan.places import RunsDir
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.address import open_client
from orchestrator.tracking.notes import Note
from orchestrator.tracking.spool import Spool
from orchestrator.tracking.tracker import TrackedRun, Tracker
from workloads.training.records import TrainingRecord

pytestmark = pytest.mark.e2e

CURVES = {"loss", "images_per_s", "learning_rate", "loader_wait_share"}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, for it takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    open_client(f"sqlite:///{file}")
    return file


@pytest.fixture
def runs(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> RunsDir:
    """A runs directory with an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "RETRY_INTERVAL_S", 0.1)
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.1)
    runs = RunsDir(tmp_path / "runs")
    runs.path.mkdir()
    shutil.copyfile(empty_database, runs.mlflow_database)
    return runs


def record(images_seen: int, written_s: float = 1e9) -> TrainingRecord:
    return TrainingRecord(images_seen, 1 / images_seen, 10.0, 1e-3, 0.0, written_s=written_s)


def open_both(tracker: Tracker) -> tuple[TrackedRun, TrackedRun]:
    """A configuration and an expert of it."""
    run = tracker.configuration("tiny", "f" * 16, {"seed": 0}, "seed: 0")
    return run, tracker.expert(run, "expert_00", "expert", "k", {"interval": "[0, 10)"})


def rows(runs: RunsDir) -> Counter[tuple[str, str, int]]:
    """How many rows there are by run's name, metric and step, read past MLflow."""
    with closing(sqlite3.connect(runs.mlflow_database)) as database:
        query = "SELECT name, key, step FROM metrics JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active'"
        return Counter(database.execute(query).fetchall())


def statuses(runs: RunsDir) -> list[tuple[str, str]]:
    """Name and status of every run that is not deleted."""
    with closing(sqlite3.connect(runs.mlflow_database)) as database:
        query = "SELECT name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY name"
        return database.execute(query).fetchall()


def curves(steps: range) -> Counter[tuple[str, str, int]]:
    return Counter({("expert", name, step): 1 for name in CURVES for step in steps})


def lose_answers(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> Counter[str]:
    """Calls of MLflow are carried out, and every other answer is lost."""
    calls: Counter[str] = Counter()

    def lossy(name: str, carry_out: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(carry_out)
        def call(*args: Any, **more: Any) -> Any:
            answer = carry_out(*args, **more)
            calls[name] += 1
            if calls[name] % 2:
                raise ConnectionError(f"the answer to {name} was lost")
            return answer

        return call

    for name in names:
        monkeypatch.setattr(MlflowClient, name, lossy(name, getattr(MlflowClient, name)))
    return calls


def test_a_lost_answer_writes_nothing_twice(runs: RunsDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["create_experiment", "create_run", "log_batch", "log_artifact", "set_tag", "set_terminated"]
    calls = lose_answers(monkeypatch, names)
    with Tracker(runs.path) as tracker:
        run, expert = open_both(tracker)
        for first in range(1, 41, 10):
            expert.records([record(step) for step in range(first, first + 10)])
            tracker.flush()
        run.set_tags({"a": "b"})
        tracker.flush()
        # Another attempt began at a checkpoint before, and was faster.
        expert.records([record(step, written_s=2e9) for step in range(25, 51)])
        run.log_metrics({"macs": 5.0})
        (tmp_path / "grid.png").write_bytes(b"picture")
        run.log_artifact(tmp_path / "grid.png")
        expert.finish("FINISHED")
        run.finish("FINISHED")
        tracker.flush()
        while runs.spool.exists() and list(runs.spool.glob("*.jsonl")):
            tracker.flush()
    assert min(calls[name] for name in names) >= 1
    assert rows(runs) == curves(range(1, 51)) + Counter([("tiny", "macs", 0)])
    assert statuses(runs) == [("expert", "FINISHED"), ("tiny", "FINISHED")]
    assert run.run_id is not None
    files = MlflowClient(tracking_uri=tracker.uri).list_artifacts(run.run_id)
    assert {file.path for file in files} == {"config.yaml", "grid.png"}


def test_a_step_that_a_dead_driver_did_not_write_is_filled_in(runs: RunsDir) -> None:
    with Tracker(runs.path) as tracker:
        open_both(tracker)[1].records([record(step) for step in (1, 2, 4, 5)])
    with Tracker(runs.path) as tracker:
        open_both(tracker)[1].records([record(step, written_s=2e9) for step in range(1, 8)])
    assert rows(runs) == curves(range(1, 8))


def test_two_drivers_that_share_an_expert_write_its_curve_once(runs: RunsDir) -> None:
    with Tracker(runs.path) as one, Tracker(runs.path) as other:
        mine, theirs = open_both(one)[1], open_both(other)[1]
        for step in range(1, 21):
            mine.records([record(step)])
            theirs.records([record(step)])
            if step % 5 == 0:
                one.flush()
                other.flush()
    assert rows(runs) == curves(range(1, 21))
    assert len(statuses(runs)) == 2


def test_runs_that_nobody_ended_are_killed_and_go_on_in_the_same_run(runs: RunsDir) -> None:
    with Tracker(runs.path) as tracker:
        first = open_both(tracker)[0]
    assert statuses(runs) == [("expert", "KILLED"), ("tiny", "KILLED")]
    killed = f"""
from pathlib import Path
from orchestrator.tracking.tracker import Tracker
with Tracker(Path({str(runs.path)!r})) as tracker:
    run = tracker.configuration("tiny", "f" * 16, {{"seed": 0}}, "seed: 0")
    tracker.expert(run, "expert_00", "expert", "k", {{}})
    tracker.flush()
    import os
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert statuses(runs) == [("expert", "RUNNING"), ("tiny", "RUNNING")]
    with Tracker(runs.path) as tracker:
        again = tracker.configuration("tiny", "f" * 16, {"seed": 0}, "seed: 0")
        tracker.flush()
        assert statuses(runs) == [("expert", "KILLED"), ("tiny", "RUNNING")]
        again.finish("FINISHED")
    assert statuses(runs) == [("expert", "KILLED"), ("tiny", "FINISHED")]
    assert again.run_id == first.run_id


def test_a_finished_expert_stays_finished(runs: RunsDir) -> None:
    with Tracker(runs.path) as waiting:
        open_both(waiting)
        waiting.flush()
        with Tracker(runs.path) as trains:
            open_both(trains)[1].finish("FINISHED")
    assert ("expert", "FINISHED") in statuses(runs)


def test_what_is_refused_is_set_aside_and_said_once(runs: RunsDir, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(runs.path) as tracker:
        run, expert = open_both(tracker)
        run.log_metrics({"good": 1.0, "bad\nname": 2.0, "also good": 3.0})
        run.set_tags({"x" * 300: "too long a name"})
        tracker.put("open", "configuration-x", {"name": "torn"})
        tracker.put("metrics", "configuration-never-opened", {"values": {"a": 1.0}, "step": 0, "time_ms": 0})
        expert.records([record(1)])
        tracker.flush()
        run.log_metrics({"bad\nname": 2.0})
        tracker.flush()
        assert {("tiny", "good", 0), ("tiny", "also good", 0), ("expert", "loss", 1)} <= set(rows(runs))
        MlflowClient(tracking_uri=tracker.uri).delete_run(expert.run_id or "")
        expert.records([record(2)])
        run.log_metrics({"later": 1.0})
    assert ("tiny", "later", 0) in rows(runs)
    told = capsys.readouterr().err
    assert told.count("set aside") == 1
    assert "answer" not in told
    (aside,) = runs.spool.glob("*.rejected")
    assert len(aside.read_text().splitlines()) == 8


def test_a_note_uploads_and_deletes_nothing_of_others(runs: RunsDir, tmp_path: Path) -> None:
    secret = tmp_path / "keys" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    with Tracker(runs.path) as tracker:
        run = open_both(tracker)[0]
        spool = Spool(runs.spool)
        for name in (str(secret), "../../../keys/secret", "../notes.jsonl"):
            spool.append([Note("artifact", run.identity, {"file": name, "folder": None})])
        spool.append([Note("artifact", run.identity, {"file": name, "folder": "../../other"})])
        spool.close()
    assert secret.read_text() == "secret"
    assert run.run_id is not None
    files = MlflowClient(tracking_uri=tracker.uri).list_artifacts(run.run_id)
    assert [file.path for file in files] == ["config.yaml"]


def test_a_deleted_experiment_is_named_and_brought_back(runs: RunsDir, capsys: pytest.CaptureFixture[str]) -> None:
    client = open_client(f"sqlite:///{runs.mlflow_database}")
    with Tracker(runs.path) as tracker:
        _, expert = open_both(tracker)
        expert.records([record(1)])
        tracker.flush()
        client.delete_experiment(tracker.experiment_id)
        expert.records([record(2)])
        tracker.flush()
    told = capsys.readouterr().err
    assert f"mlflow experiments restore --experiment-id {tracker.experiment_id}" in told
    assert "not answer" not in told
    client.restore_experiment(tracker.experiment_id)
    with Tracker(runs.path):
        pass
    assert rows(runs) == curves(range(1, 3))


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of 4 MiB."""
    return mounted("4m")


def test_a_read_only_database_is_named(
    runs: RunsDir, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(runs.mlflow_database, small_disk / "mlflow.db")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk}/mlflow.db")
    with Tracker(runs.path) as tracker:
        open_both(tracker)
    assert f"{small_disk}/mlflow.db cannot be written; make it writable" in capsys.readouterr().err


def test_a_full_disk_is_named_survived_and_caught_up_with(
    empty_database: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "RETRY_INTERVAL_S", 0.1)
    runs = RunsDir(small_disk)
    shutil.copyfile(empty_database, runs.mlflow_database)
    picture = small_disk / "grid.png"
    picture.write_bytes(b"x" * 9000)
    filler = small_disk / "filler"
    with Tracker(runs.path) as tracker:
        run, expert = open_both(tracker)
        tracker.flush()
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        expert.records([record(step) for step in range(1, 301)])
        run.log_artifact(picture)
        tracker.flush()
        told = capsys.readouterr().err
        assert "No space left" in told
        assert "kept in memory" in told
        filler.unlink()
        tracker.flush()
        tracker.flush()
        assert "can be written again" in capsys.readouterr().err
    assert rows(runs) == curves(range(1, 301))
    assert run.run_id is not None
    files = MlflowClient(tracking_uri=tracker.uri).list_artifacts(run.run_id)
    assert {file.path for file in files} == {"config.yaml", "grid.png"}


def test_first_runs_at_once_make_one_whole_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was killed while it made it; two begin at once then."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = RunsDir(tmp_path / "runs")
    runs.path.mkdir()
    with closing(sqlite3.connect(runs.mlflow_database)) as database:
        database.execute("CREATE TABLE _alembic_tmp_tags (key TEXT)")
    first = f"""
from pathlib import Path
from orchestrator.tracking.tracker import Tracker
with Tracker(Path({str(runs.path)!r})) as tracker:
    run = tracker.configuration("tiny", "f" * 16, {{"seed": 0}}, "seed: 0")
    run.log_metrics({{"macs": 5.0}}, measured_s=1e9)
    run.finish("FINISHED")
"""
    processes = [subprocess.Popen([sys.executable, "-c", first], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert statuses(runs) == [("tiny", "FINISHED")]
    assert rows(runs) == Counter([("tiny", "macs", 0)])
    assert not list(runs.path.glob(".*.partial"))

"""The tracker against a real MLflow server that comes late, goes away and comes back."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from waiting import wait_until

from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.tracker import Tracker
from workloads.training.records import TrainingRecord

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(new_tracking_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    server = new_tracking_server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(tracking, "RETRY_INTERVAL_S", 0.5)
    return server


def record(images_seen: int) -> TrainingRecord:
    return TrainingRecord(
        images_seen=images_seen, loss=1 / images_seen, images_per_s=10.0, learning_rate=1e-3, loader_wait_share=0.0
    )


def steps(server: Any, name: str) -> list[int]:
    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("rememe")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]


def test_a_server_that_dies_and_returns_loses_nothing(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"picture")
    with Tracker(tmp_path / "runs") as tracker:
        run = tracker.configuration("tiny", "f" * 16, {"seed": 0}, "seed: 0")
        expert = tracker.expert(run, "expert_00", "expert", "k", {})
        expert.records([record(1), record(2)])
        tracker.flush()
        assert steps(server, "expert") == [1, 2]

        server.kill()
        started_s = time.monotonic()
        expert.records([record(3)])
        run.log_artifact(grid)
        assert time.monotonic() - started_s < 1  # training does not wait for the tracker
        grid.unlink()  # the tracker has its own copy
        wait_until(lambda: "does not answer" in capsys.readouterr().err)

        server.start()
        expert.records([record(4)])
        wait_until(lambda: "answers again" in capsys.readouterr().err)
        expert.finish("FINISHED")
        run.finish("FINISHED")
    assert steps(server, "expert") == [1, 2, 3, 4]
    client = MlflowClient(tracking_uri=server.uri)
    assert run.run_id is not None
    assert {item.path for item in client.list_artifacts(run.run_id)} == {"config.yaml", "grid.png"}
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_batch_that_was_not_taken_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses one call; the records of that call are there in the end, each once."""
    refuse = MlflowClient.log_batch
    refused: list[str] = []

    def log_batch(self: MlflowClient, run_id: str, metrics: Sequence[Any] = (), **more: Any) -> None:
        if metrics and not refused:
            refused.append(run_id)
            raise ConnectionError("not now")
        refuse(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(tracking, "RETRY_INTERVAL_S", 0.1)
    with Tracker(tmp_path / "runs") as tracker:
        run = tracker.configuration("tiny", "f" * 16, {}, "")
        expert = tracker.expert(run, "expert_00", "expert", "k", {})
        expert.records([record(1), record(2)])
        tracker.flush()
        assert refused
        expert.records([record(3)])
    client = MlflowClient(tracking_uri=tracker.uri)
    assert expert.run_id is not None
    assert [metric.step for metric in client.get_metric_history(expert.run_id, "loss")] == [1, 2, 3]


def test_what_one_run_could_not_write_the_next_run_writes(server: Any, tmp_path: Path) -> None:
    with Tracker(tmp_path / "runs") as tracker:
        run = tracker.configuration("first", "a" * 16, {}, "")
        tracker.expert(run, "expert_00", "expert", "k", {}).records([record(1), record(2)])
        run.finish("KILLED")
    assert run.run_id is None
    server.start()
    for file in (tmp_path / "runs" / "spool").glob("notes-*"):  # as if that process had ended
        file.rename(file.with_name(f"notes-{2**22 + 1}-{file.name[-14:]}"))
    with Tracker(tmp_path / "runs") as tracker:
        again = tracker.configuration("second", "b" * 16, {}, "")
        tracker.flush()
    assert again.run_id is not None
    assert steps(server, "expert") == [1, 2]

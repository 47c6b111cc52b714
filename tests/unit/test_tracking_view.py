"""What MLflow's run table opens on, against a real store in memory of SQLite."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.names import FINGERPRINT_TAG, KEY_TAG, SCORE_TAG, VIEW_TAG
from orchestrator.tracking.view import CONFIGURATIONS, VIEW, set_first_view


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def view_of(client: MlflowClient) -> dict[str, object]:
    view = json.loads(client.get_experiment_by_name("e").tags[VIEW_TAG + VIEW])
    assert isinstance(view, dict)
    return view


def test_configurations_come_first_sorted_by_the_score_most_of_them_have(client: MlflowClient) -> None:
    experiment = client.create_experiment("e")
    for number, score in enumerate(["fid2k", "fid2k", "fid50k"]):
        run = client.create_run(experiment, tags={FINGERPRINT_TAG: f"f{number}", SCORE_TAG: score})
        client.log_metric(run.info.run_id, score, 3.0 - number)
        client.log_metric(run.info.run_id, "fid2k_stderr", 0.1)
    client.create_run(experiment, tags={KEY_TAG: "an expert"})
    address = set_first_view(client, "e")
    assert address == f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    view = view_of(client)
    assert view["orderByKey"] == "metrics.`fid2k`"
    assert view["orderByAsc"] is True
    assert isinstance(view["selectedColumns"], list)
    scores = [name for name in view["selectedColumns"] if "fid" in name]
    assert scores == ["metrics.`fid2k`", "metrics.`fid2k_stderr`", "metrics.`fid50k`"]
    # The filter is MLflow's own language: it must find the configurations and nothing else.
    found = client.search_runs([experiment], str(view["searchFilter"]))
    assert {run.data.tags[FINGERPRINT_TAG] for run in found} == {"f0", "f1", "f2"}
    assert len(client.search_runs([experiment])) == 4


def test_without_scores_the_newest_come_first(client: MlflowClient) -> None:
    experiment = client.create_experiment("e")
    client.create_run(experiment, tags={FINGERPRINT_TAG: "f"})
    set_first_view(client, "e")
    view = view_of(client)
    assert view["orderByKey"] == "attributes.start_time"
    assert view["orderByAsc"] is False
    assert view["searchFilter"] == CONFIGURATIONS


def test_where_nothing_was_tracked_there_is_no_view(client: MlflowClient) -> None:
    assert set_first_view(client, "e") == ""

"""A study from the command line: each expert trained once, resumed for nothing, a mistake found before Ray starts."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

pytestmark = pytest.mark.e2e

Rememe = Callable[..., "subprocess.CompletedProcess[str]"]


def write_study(tiny_run: dict[str, Any], folder: Path, **changes: Any) -> None:
    study = {
        "name": "tiny-study",
        "base": tiny_run,
        "space": {"strategy.experts.*.model.attention_share": {"each": [["1/4"], ["3/4"]], "monotone": True}},
        "sampler": "grid",
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))


def test_a_study_trains_each_expert_once_and_goes_on_for_nothing(
    tiny_run: dict[str, Any], rememe: Rememe, tmp_path: Path
) -> None:
    write_study(tiny_run, tmp_path, num_configurations=3)
    planned = json.loads(rememe("plan", "study.yaml", "--json", cwd=tmp_path).stdout)
    assert (planned["num_configurations"], planned["num_distinct_jobs"]) == (3, 6)
    result = rememe("search", "study.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trained = list((tmp_path / "runs" / "store").glob("*/result.json"))
    assert {file.parent.name for file in trained} == {job["key"] for job in planned["jobs"]}
    with (tmp_path / "runs" / "tiny-study.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 3
    assert scores == sorted(scores)
    assert len({row["protocol_hash"] for row in rows}) == 1
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rememe")
    runs = client.search_runs([experiment.experiment_id], "tags.`rememe.comparison` = 'tiny-study'")
    assert sorted(run.data.metrics["fd-fashion-cnn"] for run in runs) == pytest.approx(scores)
    again = rememe("search", "study.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "configuration 1 of" not in again.stderr
    with (tmp_path / "runs" / "tiny-study.csv").open() as file:
        assert list(csv.DictReader(file)) == rows


def test_mistakes_are_found_before_anything_starts(tiny_run: dict[str, Any], rememe: Rememe, tmp_path: Path) -> None:
    write_study(tiny_run, tmp_path, space={"training.batchsize": {"choice": [1, 2]}})
    result = rememe("search", "study.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'batch_size'?" in result.stderr
    assert result.stdout == ""
    missing = rememe("search", "search-ratio", cwd=tmp_path)
    assert missing.returncode == 2
    assert "studies: search-ratios" in missing.stderr

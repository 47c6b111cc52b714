"""What a job is given is read there as it was read here: runs, comparisons and studies, by one file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.runs.submission import describe_submission, job_command
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.find import find_study, whole_description
from workloads.config.load import load_comparison, load_config
from workloads.errors import ConfigError
from workloads.presets import list_presets


def written(folder: Path, command: str, description: dict[str, Any]) -> str:
    """The only file of the job, written where the job would find it."""
    line, files = job_command(command, description, Path("/shared/runs"), None)
    ((name, text),) = files.items()
    assert line == ["rememe", command, name, "--runs-dir", "/shared/runs"]
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", list_presets())
def test_a_run_is_the_same_there(name: str, tmp_path: Path) -> None:
    command, description = describe_submission(name, ["training.images=640"])
    assert command == "train"
    assert load_config(written(tmp_path, command, description)) == load_config(name, ["training.images=640"])


@pytest.mark.parametrize("name", list_presets("comparisons"))
def test_a_comparison_is_the_same_there(name: str, tmp_path: Path) -> None:
    command, description = describe_submission(name, ["budget_images=64"])
    assert command == "compare"
    assert load_comparison(written(tmp_path, command, description)) == load_comparison(name, ["budget_images=64"])


@pytest.mark.parametrize("name", list_presets("studies"))
def test_a_study_has_the_same_configurations_there(name: str, tmp_path: Path) -> None:
    here = find_study(name, ["budget.num_configurations=5"])
    assert here is not None
    there = find_study(written(tmp_path, "search", whole_description(here)), [])
    assert there is not None
    points = [[(values, config) for values, config in Configurations(study)] for study in (here, there)]
    assert points[0] == points[1]
    assert len(points[0]) == 5
    assert here.identity(points[0][0][1]) == there.identity(points[1][0][1])


def test_options_go_along_and_a_relative_directory_is_refused(tmp_path: Path) -> None:
    line, files = job_command("train", {"name": "a b"}, Path("/r"), "s3://bucket/x")
    assert line == ["rememe", "train", "a b.yaml", "--runs-dir", "/r", "--store", "s3://bucket/x"]
    assert yaml.safe_load(files["a b.yaml"]) == {"name": "a b"}
    for command in ("train", "compare", "search"):
        line, _ = job_command(command, {"name": "a"}, None, None, "s3://bucket/x")
        assert line == ["rememe", command, "a.yaml", "--storage", "s3://bucket/x"]
    for runs_dir in (Path("runs"), None):
        with pytest.raises(ConfigError, match="give an absolute path that all nodes of the cluster see"):
            job_command("train", {"name": "a"}, runs_dir, None)

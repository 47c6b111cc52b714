"""Which addresses of MLflow are taken, and what is said of the others before anything starts."""

import sys
from pathlib import Path

import pytest

from orchestrator.tracking.address import tracking_uri
from workloads.errors import ConfigError


def test_by_default_it_is_a_file_in_the_runs_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["ftp://ann:s3cret@h/x", "./mlruns", "postgresql://ann:s3cret@h:port/x"])
def test_what_mlflow_does_not_know_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is") as told:
        tracking_uri(tmp_path)
    assert "s3cret" not in str(told.value)


def test_a_folder_is_refused_unless_mlflow_is_told_to_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    with pytest.raises(ConfigError, match=r"no longer writes to a folder; set it to sqlite:.* or http://"):
        tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking_uri(tmp_path) == f"file://{tmp_path}/mlruns"


@pytest.mark.parametrize(
    ("uri", "package"),
    [("postgresql://ann:s3cret@h/x", "'rememe[postgres]'"), ("mysql+pymysql://ann:s3cret@h/x", "pymysql")],
)
def test_a_missing_driver_is_named(uri: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    driver = "psycopg2" if uri.startswith("postgresql") else "pymysql"
    # None there means: there is no such package.
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigError) as told:
        tracking_uri(tmp_path)
    assert str(told.value).endswith(f"run: pip install {package}")
    assert "s3cret" not in str(told.value)

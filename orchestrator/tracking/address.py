"""Where MLflow keeps results, and whether it answers."""

import os
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse

from orchestrator.plan.errors import TrackingError
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.names import TRIED_TAG
from workloads.errors import ConfigError

SCHEMES = {"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "file"}


def tracking_uri(runs_dir: Path) -> str:
    """$MLFLOW_TRACKING_URI, or the SQLite file in the runs directory. ConfigError if MLflow knows no such scheme."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{RunsDir(runs_dir).mlflow_database}"
    # mysql+pymysql names the driver too.
    scheme = urlparse(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {uri!r}; it must start with one of {', '.join(sorted(SCHEMES))}, "
            "for instance sqlite:////path/mlflow.db or http://host:5000"
        )
    return uri


def count_experiments(uri: str) -> int:
    """Number of experiments in the store. Raises TrackingError if it does not answer."""
    quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return len(MlflowClient(tracking_uri=uri).search_experiments())
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from None


def try_out(uri: str) -> None:
    """Write something small, a tag that says when that was tried. TrackingError if the store refuses."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        for experiment in client.search_experiments(max_results=1):
            client.set_experiment_tag(experiment.experiment_id, TRIED_TAG, datetime.now(UTC).isoformat())
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri} cannot be written: {str(error).splitlines()[0]}") from None


def quieten() -> None:
    """Bound what one call may wait, and keep MLflow's remarks off the terminal. Before mlflow is imported."""
    import logging

    # By itself MLflow waits up to two minutes for an answer and asks seven times more.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Importing GitPython fails otherwise where there is no git.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)

"""Where MLflow keeps results, and the way there."""

import os
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from orchestrator.plan.errors import TrackingError
from orchestrator.plan.masking import masked
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.faults import describe
from orchestrator.tracking.names import TRIED_TAG
from workloads.errors import ConfigError
from workloads.locks import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMES = {"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "file"}
DATABASES = {"postgresql", "mysql", "mssql"}
"""Servers that MLflow reaches by a driver of their own."""
EXTRAS = {"psycopg2": "'rememe[postgres]'"}
"""Drivers that come with an extra of ours."""
CONNECT_TIMEOUT_S = 10


def tracking_uri(runs_dir: Path) -> str:
    """$MLFLOW_TRACKING_URI, or the SQLite file in the runs directory.

    Raises ConfigError if MLflow knows no such scheme, no longer writes to a folder, or lacks the driver it takes.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{RunsDir(runs_dir).mlflow_database}"
    scheme = _scheme(uri)
    if scheme not in SCHEMES:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {masked(uri)!r}; it must start with one of {', '.join(sorted(SCHEMES))}, "
            "for instance sqlite:////path/mlflow.db or http://host:5000"
        )
    if scheme == "file" and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {uri!r}, but MLflow no longer writes to a folder; set it to "
            "sqlite:////path/mlflow.db or http://host:5000 (mlflow migrate-filestore takes over what is there)"
        )
    # SQLAlchemy 2.1 takes psycopg where it took psycopg2, which is what our extra brings.
    if uri.startswith("postgresql://") and find_spec("psycopg") is None:
        uri = uri.replace("postgresql", "postgresql+psycopg2", 1)
    if scheme in DATABASES:
        _check_driver(uri)
    return uri


def open_client(uri: str) -> "MlflowClient":
    """The way to a store that answers; an SQLite file is made if it is not there.

    Raises TrackingError, or what MLflow and the drivers of databases raise (see describe).
    """
    quieten()
    from mlflow import MlflowClient

    if _scheme(uri) in DATABASES:
        _knock(uri)
    if uri.startswith("sqlite:///"):
        import sqlalchemy

        file = Path(sqlalchemy.make_url(uri).database or "")
        # Two processes that make or migrate one SQLite file at once break it for good.
        with locked(RunsDir(file.parent).mlflow_lock, if_supported=True):
            _make_database(file)
            return _answering(MlflowClient(tracking_uri=uri))
    return _answering(MlflowClient(tracking_uri=uri))


def count_experiments(uri: str) -> int:
    """Number of experiments in the store. Raises TrackingError if it does not answer."""
    try:
        return len(open_client(uri).search_experiments())
    # From four libraries, without a common base.
    except Exception as error:
        raise TrackingError(describe(error, uri)) from None


def try_out(uri: str) -> None:
    """Write something small, a tag that says when that was tried. TrackingError if the store refuses."""
    try:
        client = open_client(uri)
        for experiment in client.search_experiments(max_results=1):
            client.set_experiment_tag(experiment.experiment_id, TRIED_TAG, datetime.now(UTC).isoformat())
    except Exception as error:
        raise TrackingError(describe(error, uri)) from None


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
    # Whatever it logs it raises too, and is told in a sentence.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _scheme(uri: str) -> str:
    # mysql+pymysql names the driver too.
    return urlparse(uri).scheme.split("+")[0]


def _check_driver(uri: str) -> None:
    import sqlalchemy

    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        name = error.name or ""
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {masked(uri)!r}, which needs the package {name}; "
            f"run: pip install {EXTRAS.get(name, name)}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI is {masked(uri)!r}; {masked(str(error).splitlines()[0])}") from None


def _knock(uri: str) -> None:
    """Fail at once where MLflow would try for a hundred seconds."""
    import sqlalchemy

    options = {} if _scheme(uri) == "mssql" else {"connect_timeout": CONNECT_TIMEOUT_S}
    engine = sqlalchemy.create_engine(uri, connect_args=options, poolclass=sqlalchemy.pool.NullPool)
    engine.connect().close()


def _answering(client: "MlflowClient") -> "MlflowClient":
    client.search_experiments(max_results=1)
    return client


def _make_database(file: Path) -> None:
    """A whole database or none, for a migration that is killed cannot be gone on with."""
    from mlflow import MlflowClient

    if _is_half_made(file):
        file.replace(file.with_name(f"{file.name}.half-made"))
    if not file.exists():
        for left_over in file.parent.glob(f".{file.name}.*.partial"):
            left_over.unlink()
        # Another name each time, as MLflow keeps its connections by name.
        scratch = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
        _answering(MlflowClient(tracking_uri=f"sqlite:///{scratch}"))
        scratch.replace(file)


def _is_half_made(file: Path) -> bool:
    """Whether a migration of it was killed before it held any run."""
    if not file.exists():
        return False
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not any(name.startswith("_alembic_tmp_") for name in tables):
            return False
        return "runs" not in tables or database.execute("SELECT count(*) FROM runs").fetchone() == (0,)

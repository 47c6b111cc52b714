"""`rememe ui`: the MLflow browser on the right store, for this machine only."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.plan.masking import masked
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.address import open_client, tracking_uri
from orchestrator.tracking.tracker import EXPERIMENT
from orchestrator.tracking.view import set_first_view
from workloads.errors import ConfigError

HOST = "127.0.0.1"
"""This machine alone: the server asks for no password."""
START_TIMEOUT_S = 90.0
"""A first start on a heavily loaded machine has taken 33 s."""


def open_ui(
    runs_dir: Path, *, port: int, beside: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
) -> int:
    """Serve until Ctrl-C; the server's exit code. ConfigError if there is no store yet or the port is taken.

    beside: what is served as long, and begun once it is clear that this can be.
    """
    uri = tracking_uri(runs_dir)
    if uri.startswith("http"):
        print(f"MLFLOW_TRACKING_URI is a server of its own: open {masked(uri)}/{_first_page(uri)}")
        print("what runs do, live: rememe ui --only-live")
        return 0
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite") and not database.exists():
        raise ConfigError(f"no results under {runs_dir} yet; train something first: rememe train demo-meme")
    with socket.socket() as probe:
        # As the server does, so that a port in TIME_WAIT does not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise ConfigError(f"--port {port} is not for every user; take one from 1024 on") from None
        except OSError as error:
            raise ConfigError(f"--port {port} cannot be had ({error.strerror}); choose another") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with beside():
        return _serve(runs_dir, uri, port)


def _serve(runs_dir: Path, uri: str, port: int) -> int:
    server = subprocess.Popen(_command(runs_dir, port), env=_environment(uri), start_new_session=True)
    try:
        if _wait_until_ready(server, port):
            print(f"results at http://{HOST}:{port}/{_first_page(uri)} (Ctrl-C ends)", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        # Its group: mlflow starts a server of its own and does not end it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _first_page(uri: str) -> str:
    # Who may only read, or whose server does not answer now, opens MLflow's own first page.
    with contextlib.suppress(Exception):
        return set_first_view(open_client(uri), EXPERIMENT)
    return ""


def _command(runs_dir: Path, port: int) -> list[str]:
    # Beside the interpreter, for its environment need not be activated.
    mlflow = Path(sys.executable).with_name("mlflow")
    program = str(mlflow) if mlflow.exists() else shutil.which("mlflow") or "mlflow"
    artifacts = RunsDir(runs_dir).mlflow_artifacts.as_uri()
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--default-artifact-root", artifacts]
    return [program, "server", *options]


def _environment(uri: str) -> dict[str, str]:
    # The address in here: every user of a machine sees the arguments of a process, and there may be a password in it.
    changes = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # Job runners are ten more processes that nothing here uses.
    changes["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # Of what MLflow itself imports; no other warning is lost.
    known = [os.environ["PYTHONWARNINGS"]] if os.environ.get("PYTHONWARNINGS") else []
    changes["PYTHONWARNINGS"] = ",".join([*known, "ignore:starlette.middleware.wsgi is deprecated"])
    return os.environ | changes


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False

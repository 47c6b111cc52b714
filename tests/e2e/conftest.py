"""The command line as a user runs it: a process of its own, in a fresh directory."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from waiting import PATIENCE_S, wait_until

from orchestrator.cli.app import main

REMEME = Path(sys.executable).with_name("rememe")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


# Addresses a developer may have set, and the token of pytest's own Ray.
ADDRESSES = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
OURS = (*ADDRESSES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """A user's environment: without what pytest's own Ray needed."""
    return {key: value for key, value in os.environ.items() if key not in OURS} | dict(changes or {})


@pytest.fixture(scope="session")
def rememe() -> Run:
    """rememe(*arguments, cwd=..., env=...): run the command to its end."""

    def run(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(REMEME), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    return run


@pytest.fixture(scope="session")
def rememe_here() -> Run:
    """The same in this process, which has paid for its imports; in the module's cluster, if it has one."""

    def run(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        command, out, err, code = ["rememe", *map(str, arguments)], io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(cwd)
            patch.setattr(sys, "argv", command)
            # Done when these tests began, and to be done once.
            patch.setattr("orchestrator.execution.environment.prepare_ray_environment", lambda _: None)
            # Not the token: Ray reads it once per process, and later tests start a cluster in this one.
            for name in ADDRESSES:
                patch.delenv(name, raising=False)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def start_rememe() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """start_rememe(*arguments, cwd=..., env=...): a running command, its output and errors in one pipe."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [str(REMEME), *map(str, arguments)],
            cwd=cwd,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@pytest.fixture
def user_environment() -> Callable[..., dict[str, str]]:
    """The environment a user's shell has, with changes."""
    return environment


class TrackingServer:
    """mlflow server in a process group of its own, with its artifacts over HTTP."""

    def __init__(self, folder: Path, port: int, database: str | None) -> None:
        self.folder, self.uri = folder, f"http://127.0.0.1:{port}"
        self._port, self._database = port, database or f"sqlite:///{folder / 'server.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--backend-store-uri", self._database]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        changes = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, env=environment(changes), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(self._answers, (self.folder / "log").read_text, process=self._process, interval_s=0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def new_tracking_server(tmp_path: Path) -> Iterator[Callable[..., TrackingServer]]:
    """new_tracking_server(database=None): a server on a free port, not yet started."""
    made: list[TrackingServer] = []

    def make(database: str | None = None) -> TrackingServer:
        folder = tmp_path / f"server-{len(made)}"
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            made.append(TrackingServer(folder, probe.getsockname()[1], database))
        return made[-1]

    yield make
    for server in made:
        server.kill()


BROWSER_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,900",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A browser without a screen. Skips where chromium is not installed."""
    binary, driver_binary = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver_binary):
        pytest.skip("chromium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*BROWSER_OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_binary))
    yield driver
    driver.quit()


@pytest.fixture
def wait_for_text() -> Callable[..., str]:
    """wait_for_text(browser, *texts): all that the page shows, once it shows these."""

    def wait(browser: webdriver.Chrome, *texts: str) -> str:
        def shown(_: object) -> str | None:
            body = browser.find_element(By.TAG_NAME, "body").text
            return body if all(text in body for text in texts) else None

        found: str = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[Exception]).until(shown)
        return found

    return wait

"""Processes of this machine, and an MLflow server with the service manager that starts it again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

END_S = 600.0
"""A command that takes longer hangs, and so does a server that answers nothing."""


class Process(NamedTuple):
    """As /proc has it."""

    pid: int
    parent: int
    state: str
    command: str


def processes() -> dict[int, Process]:
    """All of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(entry.name)] = Process(int(entry.name), int(stat[1]), stat[0], command)
    return found


def descendants(root: int) -> list[Process]:
    """Of a process, itself left out."""
    table, found = processes(), {root}
    while more := {one.pid for one in table.values() if one.parent in found} - found:
        found |= more
    return [table[pid] for pid in found - {root}]


class Server:
    """An MLflow server over the database of a folder, and the service manager that starts it whenever it has died."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._is_over, self._process = folder, Event(), None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._manager = Thread(target=self._manage, daemon=True)

    def __enter__(self) -> "Server":
        self._manager.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.kill()
        self._manager.join()

    @property
    def pid(self) -> int | None:
        """Of the process group, while there is one."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """All processes of the group: what answers requests is a child."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until it answers."""
        deadline_s = time.monotonic() + END_S
        while time.monotonic() < deadline_s:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=10):
                return
            time.sleep(0.5)
        raise TimeoutError(f"the MLflow server at {self.uri} does not answer for {END_S:g} s")

    def _manage(self) -> None:
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--backend-store-uri", database_of(self._folder)]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        while not self._is_over.is_set():
            with (self._folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            self._process.wait()
            self._process = None
            self._is_over.wait(3.0)


def database_of(folder: Path) -> str:
    """Where MLflow keeps the runs of a command."""
    return f"sqlite:///{folder / 'mlflow.db'}"

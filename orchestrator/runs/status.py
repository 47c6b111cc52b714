"""What a run does, in its directory: written by its driver, read from any terminal that sees the directory.

A small file that is replaced, by a thread of its own, when something has happened and now and then as a sign of life.
Whether the driver still lives is told by a lock, which the kernel drops however the driver ends.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.masking import masked
from orchestrator.plan.places import RunsDir
from orchestrator.plan.standing import DriverState, ExpertStanding, RunStanding
from orchestrator.store.storage import Storage
from workloads.config.explain import nearest
from workloads.errors import ConfigError, StorageError
from workloads.locks import Lock, is_locked, try_lock
from workloads.places import RunDir
from workloads.sealed import UNREADABLE, load_json, write_json

logger = logging.getLogger(__name__)

STUDY_KIND = "study"
"""Of the status of a study; any other is a strategy."""

WRITE_INTERVAL_S = 2.0
"""Between writes while things happen."""

LIFE_INTERVAL_S = 15.0
"""Between writes while nothing does; several fit into SILENT_AFTER_S."""


class StatusFile:
    """Keeps the status of a run up to date. A listener of train_experts; use as a context manager.

    Of several drivers of one run the first writes, and when it ends the next. What cannot be written is told once and
    stops nothing.
    """

    def __init__(self, run: RunDir, kind: str, jobs: Sequence[PlannedJob] = (), storage: Storage | None = None) -> None:
        self._run, self._storage = run, storage
        self._sent_s = float("-inf")
        now_s = time.time()
        self._status = RunStanding(
            name=run.path.name,
            kind=kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=own_job_id(),
            begun_s=now_s,
            written_s=now_s,
        )
        self._experts = {job.key: ExpertStanding.of(job) for job in jobs}
        self._lock: Lock | None = None
        self._is_told = False
        self._changed, self._ended = threading.Event(), threading.Event()
        self._changed.set()
        self._thread = threading.Thread(target=self._work, name="rememe-status", daemon=True)

    def __enter__(self) -> "StatusFile":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        ended, reason = "finished", ""
        if isinstance(error, KeyboardInterrupt | RunStoppedError):
            ended = "stopped"
        elif error is not None:
            ended, reason = "failed", masked(str(error).partition("\n")[0]) or type(error).__name__
        self._status = self._status.model_copy(update={"ended": ended, "reason": reason})
        self._ended.set()
        self._thread.join()
        self._write()
        if self._lock is not None:
            self._lock.release()

    def __call__(self, event: ExpertEvent) -> None:
        """Something happened to an expert."""
        self._experts[event.key] = self._experts[event.key].after(event, time.time())
        self._changed.set()

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is being done with the run, and how much of it."""
        self._status = self._status.model_copy(update={"doing": what, "done": done, "total": total})
        self._changed.set()

    # What follows runs in the writing thread.

    def _work(self) -> None:
        written_s = float("-inf")
        while not self._ended.is_set():
            if self._changed.is_set() or time.monotonic() - written_s > LIFE_INTERVAL_S:
                self._changed.clear()
                self._write()
                written_s = time.monotonic()
            self._ended.wait(WRITE_INTERVAL_S)

    def _write(self) -> None:
        try:
            self._lock = self._lock or try_lock(self._run.driver_lock)
            if self._lock is not None:
                experts = tuple(self._experts.values())
                status = self._status.model_copy(update={"experts": experts, "written_s": time.time()})
                write_json(self._run.status, status.model_dump(mode="json"))
                self._send()
        # The run does not depend on it: a full disk is told by what does.
        except (OSError, StorageError) as error:
            if not self._is_told:
                logger.warning("the status of the run cannot be written: %s", error)
            self._is_told = True

    def _send(self) -> None:
        # Each takes a request; as a sign of life it does.
        is_due = self._status.ended or time.monotonic() - self._sent_s > LIFE_INTERVAL_S
        if self._storage is not None and is_due:
            self._sent_s = time.monotonic()
            self._storage.keep_status(self._run)


def own_job_id() -> str | None:
    """Under which the cluster knows this process, if it is a submitted job."""
    # Ray sets it for the entry point of a job.
    try:
        given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(given["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None


class RunView(NamedTuple):
    """A run as it looks from here and now."""

    run: RunDir
    status: RunStanding
    driver: DriverState


def view_run(run: RunDir, *, is_copy: bool = False) -> RunView | None:
    """None if no driver has written anything there; ConfigError if that cannot be read."""
    # Before the file is read: a driver that ends in between has written so.
    locked = None if is_copy else is_locked(run.driver_lock)
    try:
        status = RunStanding.model_validate(load_json(run.status))
    except FileNotFoundError:
        return None
    except (OSError, *UNREADABLE) as error:
        said = error.strerror if isinstance(error, OSError) else "it is damaged, or of another version of rememe"
        raise ConfigError(f"{run.status} cannot be read: {said}; whoever runs it next writes it anew") from None
    return RunView(run, status, status.driver(here=socket.gethostname(), is_locked=locked, now_s=time.time()))


def view_runs(runs: RunsDir) -> list[RunView]:
    """All that have a status, the last begun first; what cannot be read is named and left out."""
    views = []
    for run in runs.all_with_status():
        try:
            view = view_run(run, is_copy=runs.is_copy)
        except ConfigError as error:
            logger.warning("%s", error)
            continue
        views += [] if view is None else [view]
    return sorted(views, key=lambda view: -view.status.begun_s)


def find_run(named: str, runs: RunsDir) -> RunView:
    """A run or study by its directory, by its name below the runs directory, or by its job.

    A run's name without its hash is that of the last begun. ConfigError if there is none.
    """
    if (Path(named) / RunDir(Path()).status.name).is_file() and (view := view_run(RunDir(Path(named).absolute()))):
        return view
    views = view_runs(runs)
    for view in views:
        status = view.status
        if named in {status.name, status.name.rpartition("-")[0], status.job}:
            return view
    known = ", ".join(view.status.name for view in views[:5])
    near = nearest(Path(named).name, [view.status.name for view in views])
    if not known:
        raise ConfigError(
            f"no run, study or job {named!r}: nothing under {runs.shown} has a status; look elsewhere with --runs-dir "
            "or --storage"
        )
    hint = f"did you mean {near}? " if near else ""
    raise ConfigError(f"no run, study or job {named!r} under {runs.shown}; {hint}the latest there: {known}")

"""MLflow, written by one thread of one process. The only module that imports mlflow.

Training never waits for the tracker: calls put a note into a queue, a thread writes it. When the store cannot be
reached, notes go to a spool on disk and are replayed in order when it answers again, or by the next run.
"""

import os
import queue
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from orchestrator.plan.errors import TrackingError
from orchestrator.terminal.view import print_note
from orchestrator.tracking.spool import Note, Spool
from workloads.errors import ConfigError
from workloads.training.records import TrainingRecord

FLUSH_INTERVAL_S = 2.0
RETRY_INTERVAL_S = 15.0
CLOSE_TIMEOUT_S = 60.0
MAX_PARAM_LENGTH = 6000
SCHEMES = {"sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "file"}

EXPERIMENT_KIND_TAG = "mlflow.experimentKind"
"""Makes MLflow's pages show metrics columns rather than language-model traces."""

FINGERPRINT_TAG = "rememe.fingerprint"
KEY_TAG = "rememe.key"
COMPARISON_TAG = "rememe.comparison"
STUDY_TAG = "rememe.study"
PARENT_TAG = "mlflow.parentRunId"
LINK_TAG = "rememe.run_of."
"""Plus an expert's name: the id of its run, which may be below another configuration that has the same expert."""

IDENTITY_TAG = "rememe.identity"
"""Finds a run again after a restart; a configuration, and an expert of it, has one run."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri(runs_dir: Path) -> str:
    """$MLFLOW_TRACKING_URI, or the SQLite file in the runs directory. ConfigError if MLflow knows no such scheme."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir.absolute() / 'mlflow.db'}"
    scheme = urlparse(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {uri!r}; it must start with one of {', '.join(sorted(SCHEMES))}, "
            "for instance sqlite:////path/mlflow.db or http://host:5000"
        )
    return uri


def check_store(uri: str) -> int:
    """Number of experiments in the store. Raises TrackingError if it does not answer."""
    _quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return len(MlflowClient(tracking_uri=uri).search_experiments())
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from None


class TrackedRun:
    """One MLflow run, named by words of ours; what is logged to it is written later."""

    def __init__(self, tracker: "Tracker", identity: str) -> None:
        self._tracker = tracker
        self.identity = identity

    @property
    def run_id(self) -> str | None:
        """MLflow's id, known once the run has been written."""
        return self._tracker.run_ids.get(self.identity)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Values at a step; NaN and infinity are left out, for MLflow's pages cannot draw them."""
        now_ms = int(time.time() * 1000)
        finite = {name: float(value) for name, value in metrics.items() if abs(value) < float("inf")}
        self._tracker.put("metrics", self.identity, {"values": finite, "step": step, "time_ms": now_ms})

    def records(self, records: Sequence[TrainingRecord]) -> None:
        """An expert's records, at step = images seen; steps already there are not written twice."""
        now_ms = int(time.time() * 1000)
        for record in records:
            values = {
                "loss": record.loss,
                "images_per_s": record.images_per_s,
                "learning_rate": record.learning_rate,
                "loader_wait_share": record.loader_wait_share,
            }
            note = {"values": values, "step": record.images_seen, "time_ms": now_ms, "once": True}
            self._tracker.put("metrics", self.identity, note)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A copy of a file."""
        staged = self._tracker.spool.stage(path.name)
        shutil.copyfile(path, staged)
        self._tracker.put("artifact", self.identity, {"file": str(staged), "folder": folder})

    def log_text(self, text: str, name: str) -> None:
        """A text file."""
        staged = self._tracker.spool.stage(name)
        staged.write_text(text)
        self._tracker.put("artifact", self.identity, {"file": str(staged), "folder": None})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words that filters find."""
        self._tracker.put("tags", self.identity, dict(tags))

    def finish(self, status: Status) -> None:
        """End the run."""
        self._tracker.put("finish", self.identity, {"status": status})


class Tracker:
    """Use as a context manager; leaving it writes what is left, within a bounded time."""

    def __init__(self, runs_dir: Path, experiment: str = "rememe") -> None:
        self.uri = tracking_uri(runs_dir)
        self.run_ids: dict[str, str] = {}
        self.experiment_id: str | None = None
        self.spool = Spool(runs_dir.absolute() / "spool")
        self._runs_dir = runs_dir.absolute()
        self._experiment = experiment
        self._queue: queue.Queue[Note | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="rememe-tracker", daemon=True)
        self._offline = False
        self._tried_s = 0.0
        self._client: Any = None
        self._last_step: dict[str, int] = {}
        self._ended: set[str] = set()
        """Experts that were finished before they were opened here."""

    def __enter__(self) -> "Tracker":
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def study(self, name: str, params: Mapping[str, object]) -> TrackedRun:
        """The run of a search, above those of its configurations; the same name goes on in the same run."""
        return self._open(f"study-{name}", name, {STUDY_TAG: name}, None, params)

    def configuration(
        self,
        name: str,
        fingerprint: str,
        params: Mapping[str, object],
        config_yaml: str,
        *,
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """The run of a configuration, by itself or below the study that had it first; it goes on in the same run."""
        run = self._open(f"configuration-{fingerprint}", name, {FINGERPRINT_TAG: fingerprint}, parent, params)
        run.log_text(config_yaml, "config.yaml")
        return run

    def expert(self, parent: TrackedRun, name: str, title: str, key: str, params: Mapping[str, object]) -> TrackedRun:
        """The run of an expert, below the configuration that had it first; `parent` gets a link to it.

        What is logged to an expert that is finished already is left out: it would be the same.
        """
        return self._open(f"expert-{key}", title, {KEY_TAG: key}, parent, params, link=name, once=True)

    def flush(self) -> None:
        """Wait, for a bounded time, until all that was logged so far is written or spooled."""
        reached = threading.Event()
        self._queue.put(Note("mark", "", {"event": reached}))
        reached.wait(CLOSE_TIMEOUT_S)

    def put(self, kind: str, identity: str, content: dict[str, Any]) -> None:
        """Queue a note; returns at once."""
        self._queue.put(Note(kind, identity, content))

    def _open(
        self,
        identity: str,
        name: str,
        tags: dict[str, str],
        parent: TrackedRun | None,
        params: Mapping[str, object],
        *,
        link: str | None = None,
        once: bool = False,
    ) -> TrackedRun:
        texts = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        content = {"name": name, "tags": tags, "params": texts, "link": link or name, "once": once}
        self.put("open", identity, content | {"parent": None if parent is None else parent.identity})
        return TrackedRun(self, identity)

    # What follows runs in the writing thread.

    def _work(self) -> None:
        ended = False
        while not ended:
            notes: list[Note] = []
            deadline_s = time.monotonic() + FLUSH_INTERVAL_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                try:
                    note = self._queue.get(timeout=left_s)
                except queue.Empty:
                    break
                if note is None:
                    ended = True
                    break
                notes.append(note)
                if note.kind == "mark":
                    break
            self._handle(notes, last=ended)

    def _handle(self, notes: list[Note], *, last: bool) -> None:
        marks = [note for note in notes if note.kind == "mark"]
        self.spool.append([note for note in notes if note.kind != "mark"])
        waited = time.monotonic() - self._tried_s > RETRY_INTERVAL_S
        if not self._offline or waited or last:
            self._replay()
        for mark in marks:
            mark.content["event"].set()

    def _replay(self) -> None:
        """Write what is spooled, in order; what remains after a failure stays for the next try."""
        self._tried_s = time.monotonic()
        try:
            self._connect()
            self.spool.replay(self._apply)
        # Whatever the store or the network does, training goes on: the one place where every error is caught.
        except Exception as error:
            if not self._offline:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                print_note(f"MLflow at {self.uri} does not answer ({reason}); results are kept in {self.spool.path}")
            self._offline = True
        else:
            if self._offline:
                print_note(f"MLflow at {self.uri} answers again; everything kept was written")
            self._offline = False

    def _connect(self) -> None:
        if self._client is not None:
            return
        _quiet()
        from filelock import FileLock
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        # Two processes that create the same SQLite file at once break each other's migration.
        with FileLock(self._runs_dir / ".mlflow.lock"):
            found = client.get_experiment_by_name(self._experiment)
            if found is not None:
                self.experiment_id = found.experiment_id
            else:
                # Fixed for ever when the experiment is made; by default it would be relative to this process.
                location = None if self.uri.startswith("http") else (self._runs_dir / "mlartifacts").as_uri()
                self.experiment_id = client.create_experiment(
                    self._experiment, artifact_location=location, tags={EXPERIMENT_KIND_TAG: "custom_model_development"}
                )
        self._client = client

    def _apply(self, notes: Sequence[Note]) -> None:
        """Write consecutive notes of one kind about one run."""
        first = notes[0]
        if first.kind == "open":
            for note in notes:
                self._apply_open(note)
            return
        if first.identity in self._ended:
            return
        run_id = self._find(first.identity)
        if first.kind == "metrics":
            self._apply_metrics(run_id, notes)
        for note in notes:
            content = note.content
            if note.kind == "artifact":
                self._apply_artifact(run_id, content)
            elif note.kind == "tags":
                for key, value in content.items():
                    self._client.set_tag(run_id, key, value)
            elif note.kind == "finish":
                self._client.set_terminated(run_id, content["status"])

    def _apply_open(self, note: Note) -> None:
        content, identity = note.content, note.identity
        parent_id = None if content["parent"] is None else self._find(content["parent"])
        known = self._search(identity)
        if known is None:
            run_id = self._create(note, parent_id)
        elif content["once"] and known.info.status == "FINISHED":
            run_id = known.info.run_id
            self._ended.add(identity)
        else:
            run_id = known.info.run_id
            self._client.update_run(run_id, status="RUNNING")
            history = self._client.get_metric_history(run_id, "loss")
            self._last_step[run_id] = max((metric.step for metric in history), default=-1)
        self.run_ids[identity] = run_id
        is_elsewhere = known is not None and known.data.tags.get(PARENT_TAG) != parent_id
        if parent_id is not None and (content["once"] or is_elsewhere):
            self._client.set_tag(parent_id, f"{LINK_TAG}{content['link']}", run_id)

    def _create(self, note: Note, parent_id: str | None) -> str:
        from mlflow.entities import Param

        tags = note.content["tags"] | {IDENTITY_TAG: note.identity}
        if parent_id is not None:
            tags[PARENT_TAG] = parent_id
        run = self._client.create_run(self.experiment_id, run_name=note.content["name"], tags=tags)
        run_id: str = run.info.run_id
        params = [Param(key, value) for key, value in note.content["params"].items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def _find(self, identity: str) -> str:
        """The id of a run opened before, perhaps by a process that has ended."""
        run_id = self.run_ids.get(identity)
        if run_id is None:
            found = self._search(identity)
            if found is None:
                raise LookupError(f"run {identity} was deleted in MLflow")
            run_id = self.run_ids[identity] = found.info.run_id
        return run_id

    def _search(self, identity: str) -> Any:
        """The run with this identity, or None."""
        query = f"tags.`{IDENTITY_TAG}` = '{identity}'"
        found = self._client.search_runs([self.experiment_id], query, max_results=1)
        return found[0] if found else None

    def _apply_metrics(self, run_id: str, notes: Sequence[Note]) -> None:
        from mlflow.entities import Metric

        metrics = []
        last_step = self._last_step.get(run_id, -1)
        for note in notes:
            content = note.content
            if content.get("once"):
                if content["step"] <= last_step:
                    continue
                last_step = content["step"]
            values = content["values"].items()
            metrics += [Metric(name, value, content["time_ms"], content["step"]) for name, value in values]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[start : start + 1000])
        self._last_step[run_id] = last_step

    def _apply_artifact(self, run_id: str, content: dict[str, Any]) -> None:
        file = Path(content["file"])
        if file.exists():  # it was written before a crash that came before the spool forgot it
            self._client.log_artifact(run_id, str(file), content["folder"])
            shutil.rmtree(file.parent)


def _quiet() -> None:
    """Bound what one call may wait, and keep MLflow's remarks off the terminal. Before mlflow is imported."""
    import logging

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_url(tracker: Tracker, run: TrackedRun) -> str:
    """Where the run is in MLflow's pages, or a sentence while the store does not answer."""
    if tracker.experiment_id is None or run.run_id is None:
        return f"{tracker.uri} does not answer; the results are spooled and written by the next run"
    host = tracker.uri if tracker.uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{tracker.experiment_id}/runs/{run.run_id}"

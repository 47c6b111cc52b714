"""Writes notes about runs into MLflow, in the tracker's thread. Any error it raises means: try again later."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.plan.places import RunsDir
from orchestrator.tracking.address import quieten
from orchestrator.tracking.names import EXPERIMENT_KIND_TAG, IDENTITY_TAG, LINK_TAG, PARENT_TAG
from orchestrator.tracking.spool import Note, new_points
from workloads.locks import locked

MAX_BATCH_PARAMS, MAX_BATCH_METRICS = 100, 1000
"""What MLflow takes in one call."""


class MlflowWriter:
    """One experiment of one store. Connects when there is something to write."""

    def __init__(self, uri: str, runs: RunsDir, experiment: str) -> None:
        self.run_ids: dict[str, str] = {}
        """MLflow's ids of runs written or found so far, by identity."""

        self.experiment_id: str | None = None
        self._uri, self._runs, self._experiment = uri, runs, experiment
        self._client: Any = None
        self._last_step: dict[str, int] = {}
        self._ended: set[str] = set()
        """Experts that were finished before they were opened here."""

    def connect(self) -> None:
        """Find the experiment, or make it; the first call makes the database."""
        if self._client is not None:
            return
        quieten()
        from mlflow import MlflowClient

        # Two processes that create the same SQLite file at once break each other's migration.
        with locked(self._runs.mlflow_lock):
            client = MlflowClient(tracking_uri=self._uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is not None:
                self.experiment_id = found.experiment_id
            else:
                # Fixed for ever when the experiment is made; by default it would be relative to this process.
                location = None if self._uri.startswith("http") else self._runs.mlflow_artifacts.as_uri()
                self.experiment_id = client.create_experiment(
                    self._experiment, artifact_location=location, tags={EXPERIMENT_KIND_TAG: "custom_model_development"}
                )
        self._client = client

    def apply(self, notes: Sequence[Note]) -> None:
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
            # An earlier process may have left it finished, failed or killed.
            self._client.update_run(run_id, status="RUNNING")
            # Records that are there already come again from the job's file, and are left out.
            history = self._client.get_metric_history(run_id, "loss")
            self._last_step[run_id] = max((metric.step for metric in history), default=-1)
        self.run_ids[identity] = run_id
        is_elsewhere = known is not None and known.data.tags.get(PARENT_TAG) != parent_id
        if parent_id is not None and (content["once"] or is_elsewhere):
            self._client.set_tag(parent_id, f"{LINK_TAG}{content['link']}", run_id)

    def _create(self, note: Note, parent_id: str | None) -> str:
        from mlflow.entities import Param

        # With the run and not after it: a run without an identity would never be found again.
        tags = note.content["tags"] | {IDENTITY_TAG: note.identity}
        if parent_id is not None:
            tags[PARENT_TAG] = parent_id
        run = self._client.create_run(self.experiment_id, run_name=note.content["name"], tags=tags)
        run_id: str = run.info.run_id
        params = [Param(key, value) for key, value in note.content["params"].items()]
        for start in range(0, len(params), MAX_BATCH_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MAX_BATCH_PARAMS])
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

        points, reached = new_points(notes, self._last_step.get(run_id, -1))
        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
        for start in range(0, len(metrics), MAX_BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH_METRICS])
        # Only now: after an error the same notes come again, and must not count as written.
        self._last_step[run_id] = reached

    def _apply_artifact(self, run_id: str, content: dict[str, Any]) -> None:
        file = Path(content["file"])
        if file.exists():  # it was written before a crash that came before the spool forgot it
            self._client.log_artifact(run_id, str(file), content["folder"])
            shutil.rmtree(file.parent)

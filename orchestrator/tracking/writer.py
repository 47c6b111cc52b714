"""Writes notes about runs into MLflow, in the tracker's thread.

Notes come at least once, perhaps from several processes, and an answer may be lost after the store has taken what was
sent. So nothing is written before the store was asked what it has, and after any error it is asked again.
"""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.plan.errors import TrackingError
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.address import open_client
from orchestrator.tracking.faults import first_line, is_puzzling, is_refusal
from orchestrator.tracking.models import log_ensemble
from orchestrator.tracking.names import (
    DATASET_CONTEXT_TAG,
    EXPERIMENT_KIND_TAG,
    IDENTITY_TAG,
    LINK_TAG,
    PARENT_TAG,
    RUN_ID,
)
from orchestrator.tracking.notes import (
    ArtifactContent,
    Content,
    DatasetContent,
    FinishContent,
    ImageContent,
    MetricsContent,
    ModelContent,
    Note,
    OpenContent,
    RefusedNoteError,
    TagsContent,
    content_of,
    new_points,
)
from orchestrator.tracking.spool import Spool
from workloads.errors import ConfigError
from workloads.grid import is_whole_png
from workloads.locks import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_BATCH_PARAMS, MAX_BATCH_METRICS = 100, 1000
"""What MLflow takes in one call."""
MAX_TRIES = 3
"""Of a note that fails while the store answers otherwise."""
OLDEST_FIRST = ["attributes.start_time ASC", "attributes.run_id ASC"]


IMAGES_FOLDER = "images"


def image_place(path: str) -> tuple[str, int] | None:
    """Series and step of a picture as MLflow's log_image names its files; None for the first of the two it writes.

    Only with the second, which is small, is a picture whole.
    """
    match = re.fullmatch(rf"{IMAGES_FOLDER}/(.+)[+%]step[+%](\d+)[+%]timestamp[+%].+[+%]compressed\.webp", path)
    return None if match is None else (match[1].replace("~", "/"), int(match[2]))


class MlflowWriter:
    """One experiment of one store. Connects when there is something to write."""

    def __init__(self, uri: str, runs: RunsDir, experiment: str, spool: Spool) -> None:
        self.run_ids: dict[str, str] = {}
        """MLflow's ids of runs written or found so far, by identity."""

        self.experiment_id: str | None = None
        self._uri, self._runs, self._experiment, self._spool = uri, runs, experiment, spool
        self._opened: MlflowClient | None = None
        self._points: dict[str, dict[str, dict[int, float]]] = {}
        """What runs have: values by metric and step."""
        self._images: dict[str, set[tuple[str, int]]] = {}
        """And pictures: series and steps."""
        self._made: set[str] = set()
        """Runs that had nothing when they were made here."""
        self._ended: set[str] = set()
        """Experts that were finished before they were opened here."""
        self._failures: dict[tuple[str, str], int] = {}
        """How often notes failed while the store answered, by kind and run."""

    @property
    def _client(self) -> "MlflowClient":
        assert self._opened is not None
        return self._opened

    def connect(self) -> None:
        """Find the experiment, or make it. TrackingError if it was deleted, anything if the store does not answer."""
        if self._opened is None:
            client = open_client(self._uri)
            with locked(self._runs.mlflow_lock, if_supported=True):
                self.experiment_id = self._find_experiment(client)
            self._opened = client

    def apply(self, notes: Sequence[Note]) -> None:
        """Write consecutive notes of one kind about one run.

        Raises RefusedNoteError if the store will never take them, anything else if it does not now.
        """
        contents = [content_of(note) for note in notes]
        try:
            self._apply(notes[0].identity, contents)
        except RefusedNoteError:
            raise
        except Exception as error:
            # What was sent may have been taken all the same.
            self._points.clear()
            self._images.clear()
            self._made.clear()
            if not (is_refusal(error) or is_puzzling(error)):
                raise
            # Not the note's fault if nothing is taken any more.
            self.experiment_id = self._find_experiment(self._client)
            if not is_refusal(error) and self._count_failure(notes[0]) < MAX_TRIES:
                raise
            raise RefusedNoteError(first_line(error), is_all=self._is_deleted(notes[0].identity)) from error

    def _find_experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            # Fixed for ever when the experiment is made; by default it would be relative to this process.
            location = None if self._uri.startswith("http") else self._runs.mlflow_artifacts.as_uri()
            tags = {EXPERIMENT_KIND_TAG: "custom_model_development"}
            try:
                made: str = client.create_experiment(self._experiment, artifact_location=location, tags=tags)
                return made
            except MlflowException:
                # Another process may have been first.
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {self._experiment!r} was deleted in MLflow; bring it back with "
                f"mlflow experiments restore --experiment-id {found.experiment_id}, or clear it away with mlflow gc"
            )
        experiment_id: str = found.experiment_id
        return experiment_id

    def _is_deleted(self, identity: str) -> bool:
        """Whether somebody deleted a run in MLflow; then it is not looked for again."""
        run_id = self.run_ids.get(identity)
        if run_id is None:
            return False
        try:
            if self._client.get_run(run_id).info.lifecycle_stage == "active":
                return False
        except Exception as error:
            # It was cleared away as well.
            if not is_refusal(error):
                raise
        del self.run_ids[identity]
        return True

    def _count_failure(self, note: Note) -> int:
        key = (note.kind, note.identity)
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._failures[key]

    def _apply(self, identity: str, contents: Sequence[Content]) -> None:
        if isinstance(contents[0], OpenContent):
            for content in contents:
                assert isinstance(content, OpenContent)
                self._apply_open(identity, content)
        elif identity in self._ended:
            for content in contents:
                self._discard(content)
        else:
            run_id = self._find(identity)
            self._apply_metrics(run_id, [content for content in contents if isinstance(content, MetricsContent)])
            for content in contents:
                self._apply_other(run_id, content)

    def _discard(self, content: Content) -> None:
        if isinstance(content, ArtifactContent | ImageContent):
            shutil.rmtree(self._spool.staged(content.file).parent, ignore_errors=True)

    def _apply_other(self, run_id: str, content: Content) -> None:
        match content:
            case ArtifactContent(file=name, folder=folder):
                file = self._spool.staged(name)
                # Else it was written before a crash that came before the spool forgot it.
                if file.exists():
                    self._client.log_artifact(run_id, str(file), folder)
                    shutil.rmtree(file.parent)
            case ImageContent():
                self._log_image(run_id, content)
            case ModelContent():
                self._log_model(run_id, content)
            case TagsContent():
                for key, value in content.model_dump().items():
                    self._client.set_tag(run_id, key, value.replace(RUN_ID, run_id))
            case DatasetContent():
                self._log_dataset(run_id, content)
            case FinishContent(status=status, if_running=if_running):
                # It may be opened again, and has something then.
                self._points.pop(run_id, None)
                self._images.pop(run_id, None)
                self._made.discard(run_id)
                if not if_running or self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, status)

    def _apply_open(self, identity: str, content: OpenContent) -> None:
        parent_id = None
        # One that was deleted takes nothing down with it.
        with suppress(RefusedNoteError):
            parent_id = self._find(content.parent) if content.parent else None
        # Nobody else may make it between looking and making.
        with locked(self._runs.mlflow_lock, if_supported=True):
            known = self._search(identity) or self._create(identity, content, parent_id)
        run_id: str = known.info.run_id
        self.run_ids[identity] = run_id
        if content.once and known.info.status == "FINISHED":
            self._ended.add(identity)
        else:
            # An earlier process may have left it finished, failed or killed.
            if known.info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
            self._log_params(run_id, {key: one for key, one in content.params.items() if key not in known.data.params})
        is_elsewhere = known.data.tags.get(PARENT_TAG) != parent_id
        if parent_id is not None and (content.once or is_elsewhere):
            self._client.set_tag(parent_id, f"{LINK_TAG}{content.link}", run_id)

    def _create(self, identity: str, content: OpenContent, parent_id: str | None) -> "Run":
        # With the run and not after it: a run without an identity would never be found again.
        tags = content.tags | {IDENTITY_TAG: identity}
        if parent_id is not None:
            tags[PARENT_TAG] = parent_id
        made = self._client.create_run(self.experiment_id, run_name=content.name, tags=tags)
        self._made.add(made.info.run_id)
        # A machine that shares the store but not the lock may have been first.
        oldest = self._search(identity)
        if oldest is None or oldest.info.run_id == made.info.run_id:
            return made
        self._client.delete_run(made.info.run_id)
        return oldest

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entities), MAX_BATCH_PARAMS):
            self._client.log_batch(run_id, params=entities[start : start + MAX_BATCH_PARAMS])

    def _log_dataset(self, run_id: str, content: DatasetContent) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(content.name, content.digest, "local", content.source, profile=content.profile)
        # The same name and digest again is the same input.
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag(DATASET_CONTEXT_TAG, "training")])])

    def _log_image(self, run_id: str, content: ImageContent) -> None:
        from PIL import Image

        file, place = self._spool.staged(content.file), (content.key, content.step)
        # Else it was written before a crash, as with any file.
        if not file.exists():
            return
        if not is_whole_png(file.read_bytes()):
            raise RefusedNoteError(f"{file.name} is no whole PNG")
        if run_id not in self._images:
            rows = [] if run_id in self._made else self._client.list_artifacts(run_id, IMAGES_FOLDER)
            self._images[run_id] = {found for row in rows if (found := image_place(row.path)) is not None}
        if place not in self._images[run_id]:
            with Image.open(file) as image:
                self._client.log_image(run_id, image, key=content.key, step=content.step, timestamp=content.time_ms)
            self._images[run_id].add(place)
        shutil.rmtree(file.parent)

    def _log_model(self, run_id: str, content: ModelContent) -> None:
        try:
            place = self._runs.run_named(content.run).ensemble
        except ConfigError as error:
            raise RefusedNoteError(str(error)) from None
        if not place.index.is_file():
            raise RefusedNoteError(f"{content.run} holds no ensemble any more")
        log_ensemble(self._client, self.experiment_id, run_id, place.path, content)

    def _find(self, identity: str) -> str:
        """The id of a run opened before, perhaps by a process that has ended."""
        run_id = self.run_ids.get(identity)
        if run_id is None:
            found = self._search(identity)
            if found is None:
                raise RefusedNoteError(f"{identity} is not in MLflow: it was deleted or refused", is_all=True)
            run_id = self.run_ids[identity] = found.info.run_id
        return run_id

    def _search(self, identity: str) -> "Run | None":
        """The run with this identity, or None."""
        query = f"tags.`{IDENTITY_TAG}` = '{identity}'"
        found = self._client.search_runs([self.experiment_id], query, max_results=1, order_by=OLDEST_FIRST)
        return found[0] if found else None

    def _apply_metrics(self, run_id: str, notes: Sequence[MetricsContent]) -> None:
        from mlflow.entities import Metric

        points = new_points(notes, lambda name: self._history(run_id, name))
        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
        for start in range(0, len(metrics), MAX_BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH_METRICS])
        for point in points:
            self._history(run_id, point.name)[point.step] = point.value

    def _history(self, run_id: str, name: str) -> dict[int, float]:
        """Steps of a curve and their last values."""
        curves = self._points.setdefault(run_id, {})
        if name not in curves:
            rows = [] if run_id in self._made else self._client.get_metric_history(run_id, name)
            curves[name] = {row.step: row.value for row in sorted(rows, key=lambda row: row.timestamp)}
        return curves[name]

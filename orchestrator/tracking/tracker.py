"""The tracker: takes what is to be logged, at once; one thread of one process writes it to MLflow.

Training never waits for it: calls put a note into a queue. When the store cannot be reached, notes go to a spool on
disk and are replayed in order when it answers again, or by the next run.
"""

import json
import queue
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.plan.masking import masked
from orchestrator.plan.places import RunsDir
from orchestrator.terminal.notes import print_note
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.faults import describe
from orchestrator.tracking.names import FINGERPRINT_TAG, KEY_TAG, SOURCE_KIND_TAG, SOURCE_TAG, STUDY_TAG, TRAINING_PAGES
from orchestrator.tracking.notes import Note, RunStatus
from orchestrator.tracking.spool import LateFile, Spool
from orchestrator.tracking.writer import MlflowWriter
from workloads.places import RunDir
from workloads.training.records import TrainingRecord

EXPERIMENT = "rememe"
"""MLflow's name for all that a runs directory holds."""
FLUSH_INTERVAL_S = 2.0
"""Notes are gathered for so long: fewer, larger calls."""

RETRY_INTERVAL_S = 15.0
"""Between tries of a store that does not answer; a try may take as long itself."""
CLOSE_TIMEOUT_S = 60.0
"""How long an end waits for the store; what is not written by then stays in the spool for the next run."""
MAX_DIGEST_LENGTH = 36
MAX_PARAM_LENGTH = 6000
"""MLflow's limits."""


class TrackedRun:
    """One MLflow run, named by words of ours; what is logged to it is written later."""

    def __init__(self, tracker: "Tracker", identity: str) -> None:
        self._tracker = tracker
        self.identity = identity

    @property
    def run_id(self) -> str | None:
        """MLflow's id, known once the run has been written."""
        return self._tracker.run_id(self.identity)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, *, measured_s: float | None = None) -> None:
        """Values at a step; NaN and infinity are left out, for MLflow's pages cannot draw them.

        measured_s: Unix time, if it was not now. What two processes log is one point if its time is the same.
        """
        finite = {name: float(value) for name, value in metrics.items() if abs(value) < float("inf")}
        self._tracker.put("metrics", self.identity, {"values": finite, "step": step, "time_ms": _ms(measured_s)})

    def dataset(self, name: str, digest: str, source: Mapping[str, object], profile: Mapping[str, object]) -> None:
        """What it is trained on: a name to read, a digest that no other data has, where it came from, its shape."""
        texts = {"source": masked(json.dumps(dict(source))), "profile": json.dumps(dict(profile))}
        self._tracker.put("dataset", self.identity, {"name": name, "digest": digest[:MAX_DIGEST_LENGTH], **texts})

    def losses(self, expert: str, records: Sequence[TrainingRecord]) -> None:
        """An expert's curve on the page of a configuration that has it."""
        for record in records:
            note = {"values": {f"loss/{expert}": record.loss}, "step": record.images_seen, "once": True}
            self._tracker.put("metrics", self.identity, note | {"time_ms": _ms(record.written_s)})

    def records(self, records: Sequence[TrainingRecord]) -> None:
        """An expert's records, at step = images seen; steps already there are not written twice."""
        for record in records:
            values = {
                "loss": record.loss,
                "images_per_s": record.images_per_s,
                "learning_rate": record.learning_rate,
                "loader_wait_share": record.loader_wait_share,
            }
            note = {"values": values, "step": record.images_seen, "time_ms": _ms(record.written_s), "once": True}
            self._tracker.put("metrics", self.identity, note)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A copy of a file."""
        # Now, for the file may be changed or gone when it is written.
        self._put_file(path.name, "artifact", {"folder": folder}, lambda staged: shutil.copyfile(path, staged))

    def log_text(self, text: str, name: str) -> None:
        """A text file."""
        self._put_file(name, "artifact", {"folder": None}, lambda staged: staged.write_text(text))

    def log_image(self, path: Path, key: str, step: int) -> None:
        """A picture of the series `key`, made at a step; one that is there already is not written twice."""
        more = {"key": key, "step": step, "time_ms": _ms(path.stat().st_mtime)}
        self._put_file(path.name, "image", more, lambda staged: shutil.copyfile(path, staged))

    def log_model(self, run: str, fingerprint: str) -> None:
        """The ensemble in the directory of that run; one that is there already is not written twice."""
        self._tracker.put("model", self.identity, {"run": run, "fingerprint": fingerprint})

    def _put_file(self, name: str, kind: str, more: dict[str, object], write: Callable[[Path], object]) -> None:
        self._tracker.put_file(LateFile(self.identity, name, kind, more, write))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words that filters find."""
        self._tracker.put("tags", self.identity, dict(tags))

    def finish(self, status: RunStatus) -> None:
        """End the run."""
        self._tracker.put("finish", self.identity, {"status": status})


class Tracker:
    """Use as a context manager; leaving it writes what is left, within a bounded time."""

    def __init__(self, runs_dir: Path, experiment: str = EXPERIMENT) -> None:
        runs = RunsDir(runs_dir)
        self.uri = tracking_uri(runs_dir)
        self.spool = Spool(runs.spool)
        self._runs_dir = runs.path
        self._writer = MlflowWriter(self.uri, runs, experiment, self.spool)
        self._queue: queue.Queue[Note | LateFile | threading.Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="rememe-tracker", daemon=True)
        self._fault = ""
        """What keeps the store from taking notes, as it was told; empty while it takes them."""
        self._disk_fault = ""
        self._told: set[Path] = set()
        """Files of refused notes."""
        self._running: set[str] = set()
        self._tried_s = 0.0

    def __enter__(self) -> "Tracker":
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever ended the process: nothing of it goes on.
        for identity in sorted(self._running):
            self.put("finish", identity, {"status": "KILLED", "if_running": True})
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if num_lost := self.spool.num_in_memory():
            print_note(f"{num_lost} results are in neither MLflow nor {self.spool.path}, which has no space")
        if not self._thread.is_alive():
            self.spool.close()

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment, known once the store has answered."""
        return self._writer.experiment_id

    def run_id(self, identity: str) -> str | None:
        """MLflow's id of a run, known once it has been written."""
        return self._writer.run_ids.get(identity)

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
        run.log_text(config_yaml, RunDir(self._runs_dir).config.name)
        return run

    def expert(self, parent: TrackedRun, name: str, title: str, key: str, params: Mapping[str, object]) -> TrackedRun:
        """The run of an expert, below the configuration that had it first; `parent` gets a link to it.

        What is logged to an expert that is finished already is left out: it would be the same.
        """
        return self._open(f"expert-{key}", title, {KEY_TAG: key}, parent, params, link=name, once=True)

    def below(self, parent: TrackedRun, name: str) -> TrackedRun:
        """A run below a configuration for what would be in the way on its page.

        MLflow writes all parameters of a run over each of its pictures, and its comparisons begin with system metrics.
        """
        return self._open(f"{name}-of-{parent.identity}", name, {}, parent, {})

    def flush(self) -> None:
        """Wait, for a bounded time, until all that was logged so far is written or spooled."""
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait(CLOSE_TIMEOUT_S)

    def put(self, kind: str, identity: str, content: dict[str, Any]) -> None:
        """Queue a note; returns at once."""
        if kind == "open":
            self._running.add(identity)
        elif kind == "finish":
            self._running.discard(identity)
        self._queue.put(Note(kind, identity, content))

    def put_file(self, file: LateFile) -> None:
        """Keep a copy of a file to upload and queue its note; without room on the disk, try again later."""
        try:
            self._queue.put(self.spool.stage(file))
        except OSError:
            self._queue.put(file)

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
        source = {SOURCE_TAG: own_command(), SOURCE_KIND_TAG: "LOCAL"}
        content = {"name": name, "tags": source | tags, "params": texts, "link": link or name, "once": once}
        self.put("open", identity, content | {"parent": None if parent is None else parent.identity})
        return TrackedRun(self, identity)

    # What follows runs in the writing thread.

    def _work(self) -> None:
        ended = False
        while not ended:
            taken: list[Note | LateFile | threading.Event] = []
            deadline_s = time.monotonic() + FLUSH_INTERVAL_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                try:
                    one = self._queue.get(timeout=left_s)
                except queue.Empty:
                    break
                if one is None:
                    ended = True
                    break
                taken.append(one)
                # Somebody waits for it.
                if isinstance(one, threading.Event):
                    break
            self._keep(taken)
            waited = time.monotonic() - self._tried_s > RETRY_INTERVAL_S
            if not self._fault or waited or ended:
                self._replay()
            for one in taken:
                if isinstance(one, threading.Event):
                    one.set()

    def _keep(self, taken: Sequence[object]) -> None:
        """On disk first: what this process does not get to write, the next run writes."""
        notes = [one for one in taken if isinstance(one, Note)]
        try:
            self.spool.append(notes, [one for one in taken if isinstance(one, LateFile)])
        except OSError as error:
            self._disk_fault = self._told_once(
                self._disk_fault,
                f"{self.spool.path} cannot be written ({error.strerror}); results not yet in MLflow are kept in memory",
            )
        else:
            if self._disk_fault:
                print_note(f"{self.spool.path} can be written again; everything is kept")
            self._disk_fault = ""

    def _replay(self) -> None:
        """Write what is spooled, in order; what remains after a failure stays for the next try."""
        self._tried_s = time.monotonic()
        try:
            self._writer.connect()
            self.spool.replay(self._writer.apply)
        # Whatever the store or the network does, training goes on: the one place where every error is caught.
        except Exception as error:
            sentence = describe(error, self.uri)
            self._fault = self._told_once(self._fault, f"{sentence}; results are kept in {self.spool.path}")
        else:
            if self._fault:
                print_note(f"MLflow at {masked(self.uri)} answers again; everything kept was written")
            self._fault = ""
        self._tell_rejected()

    def _told_once(self, before: str, sentence: str) -> str:
        # The details change from try to try: addresses of objects, numbers of attempts.
        if sentence.split(" (", maxsplit=1)[0] != before.split(" (", maxsplit=1)[0]:
            print_note(sentence)
        return sentence

    def _tell_rejected(self) -> None:
        """Once per file."""
        for file in {one.file for one in self.spool.rejected} - self._told:
            reasons = [one.reason for one in self.spool.rejected if one.file == file]
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            print_note(
                f"MLflow will not take a note ({masked(reasons[0])}){more}; set aside in {file}, the rest goes on"
            )
            self._told.add(file)
        self.spool.rejected.clear()


def own_command() -> str:
    """What was typed, without what is secret in it."""
    program, *arguments = sys.argv
    name = Path(program).name
    return masked(shlex.join(["rememe" if name == "__main__.py" else name, *arguments]))


def _ms(time_s: float | None) -> int:
    """Unix time in milliseconds; now, if it is not known."""
    return int(1000 * (time_s or time.time()))


def run_url(tracker: Tracker, run: TrackedRun) -> str:
    """Where the run is in MLflow's pages, or a sentence while the store does not answer."""
    if tracker.experiment_id is None or run.run_id is None:
        return f"{masked(tracker.uri)} does not answer; the results are spooled and written by the next run"
    # Where `rememe ui` serves it unless told otherwise.
    host = masked(tracker.uri) if tracker.uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{tracker.experiment_id}/runs/{run.run_id}?{TRAINING_PAGES}"

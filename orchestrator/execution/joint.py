"""A remix as one job of Ray Train: any number of workers, each on its part of every batch.

Ray Train places the workers, makes the process group, and starts all of them again when one dies; what they do is
workloads' own training, which goes on from its last checkpoint.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.execution.stopping import STOP_TIMEOUT_S, stop_signals
from orchestrator.plan import events
from orchestrator.plan.errors import ExpertFailedError
from orchestrator.plan.events import EventListener
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.outcome import TrainingOutcome
from orchestrator.plan.policies import as_ray_resources
from orchestrator.store.experts import Claim, ExpertStore
from orchestrator.store.sites import require_same_store
from workloads.config import ExecutionConfig
from workloads.errors import RememeError
from workloads.files import write_text
from workloads.places import JobDir
from workloads.training.records import read_records

POLL_INTERVAL_S = 1.0
"""Between looks at what the workers have written."""

WORKER_START_TIMEOUT_S = "300"
"""Ray Train's own minute is short for a busy machine that imports torch in every worker."""


class _Work(NamedTuple):
    """What every worker is told."""

    job: PlannedJob
    data_path: Path
    folder: JobDir
    store_id: str


def train_joint(
    job: PlannedJob,
    data_path: Path,
    store: ExpertStore,
    execution: ExecutionConfig,
    listeners: Sequence[EventListener] = (),
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Train a remix on the connected cluster unless the store has it, or another driver trains it meanwhile.

    Ctrl-C, or should_stop(), writes a checkpoint and stops.
    """
    outcome, key, stop = TrainingOutcome(), job.key, threading.Event()
    with stop_signals(stop):
        claim = _claim(key, store, listeners, lambda: stop.is_set() or should_stop())
        if claim is not None:
            try:
                _train(job, data_path, store, execution, listeners, outcome, lambda: stop.is_set() or should_stop())
            finally:
                claim.release()
        elif (result := store.completed(key)) is not None:
            outcome.completed[key] = result
            store.publish(key)  # what an earlier run could not
            events.tell(listeners, events.Reused(key))
        else:
            outcome.stopped.append(key)
            events.tell(listeners, events.Stopped(key))
    return outcome


def _claim(
    key: str, store: ExpertStore, listeners: Sequence[EventListener], should_stop: Callable[[], bool]
) -> Claim | None:
    """The right to train the key, waited for; None if there is nothing to train any more, or a stop was asked for."""
    told = False
    while store.completed(key) is None and not should_stop():
        if (claim := store.claim(key)) is not None:
            return claim
        if not told:
            events.tell(listeners, events.TrainedElsewhere(key))
            told = True
        time.sleep(POLL_INTERVAL_S)
    return None


def _train(
    job: PlannedJob,
    data_path: Path,
    store: ExpertStore,
    execution: ExecutionConfig,
    listeners: Sequence[EventListener],
    outcome: TrainingOutcome,
    should_stop: Callable[[], bool],
) -> None:
    key = job.key
    work = _Work(job, data_path, JobDir(store.path(key)), store.identity)
    work.folder.path.mkdir(parents=True, exist_ok=True)
    # Of an earlier call; workers that found one would end at once.
    for left_over in (work.folder.stop, work.folder.failure):
        left_over.unlink(missing_ok=True)
    events.tell(listeners, events.Starting(key, num_workers=execution.num_workers))
    fit = _Fit(work, execution)
    _watch(fit, work, listeners, should_stop)
    failure_file = work.folder.failure
    failure = failure_file.read_text() if failure_file.exists() else fit.failure
    if (result := store.completed(key)) is not None:
        store.publish(key)
        outcome.completed[key] = result
        outcome.trained.add(key)
        events.tell(listeners, events.Done(key))
    # An end without weights and without an error is one that was asked for.
    elif failure is None or (should_stop() and not failure_file.exists()):
        outcome.stopped.append(key)
        events.tell(listeners, events.Stopped(key))
    else:
        # What a worker has written down was not tried again.
        attempts = 1 if failure_file.exists() else execution.max_attempts
        outcome.failed[key] = str(ExpertFailedError(job.name, attempts, failure))
        events.tell(listeners, events.Failed(key, failure))


def _watch(fit: "_Fit", work: _Work, listeners: Sequence[EventListener], should_stop: Callable[[], bool]) -> None:
    """Hand records on until training has ended or, after a request to stop, the time for that is over."""
    records_file, last_images, deadline_s = work.folder.records, -1, float("inf")
    # An earlier call's checkpoint is no news.
    checkpoint_images = work.folder.checkpointed_images() or 0
    while fit.is_alive() and time.monotonic() < deadline_s:
        fit.join(POLL_INTERVAL_S)
        if should_stop() and deadline_s == float("inf"):
            write_text(work.folder.stop, "")
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
        # After a restart, workers write some records again.
        records = [record for record in read_records(records_file) if record.images_seen > last_images]
        if records:
            if last_images < 0:
                events.tell(listeners, events.Training(work.job.key))
            last_images = records[-1].images_seen
            events.tell(listeners, events.Progressed(work.job.key, tuple(records)))
        if (saved_images := work.folder.checkpointed_images() or 0) > checkpoint_images:
            checkpoint_images = saved_images
            events.tell(listeners, events.Checkpointed(work.job.key, saved_images))


class _Fit(threading.Thread):
    """Ray Train's fit() in a thread of its own, so that Ctrl-C reaches us and not Ray Train."""

    def __init__(self, work: _Work, execution: ExecutionConfig) -> None:
        super().__init__(name="rememe-fit", daemon=True)
        self._work, self._execution = work, execution
        self.failure: str | None = None
        self.start()

    def run(self) -> None:
        # Ray Train would show each line that a worker prints twice.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", WORKER_START_TIMEOUT_S)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = self._work.job.resources
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"work": self._work},
            scaling_config=ScalingConfig(
                num_workers=self._execution.num_workers,
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=as_ray_resources(resources),
            ),
            run_config=RunConfig(
                name=self._work.folder.ray_train.name,
                storage_path=str(self._work.folder.path),
                # Ray Train counts restarts, we count starts.
                failure_config=FailureConfig(max_failures=self._execution.max_attempts - 1),
            ),
        )
        try:
            trainer.fit()
        # Whatever Ray Train raises ends in the outcome; an error of ours is in the job's directory.
        except Exception as error:
            self.failure = _first_sentence(error)


def _train_worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    from workloads.training.job import train_job
    from workloads.training.processes import SharedStop, Workers
    from workloads.training.result import TrainingStopped

    work: _Work = config["work"]
    if work.folder.failure.exists():
        return
    job = work.job
    workers = Workers.current()
    try:
        require_same_store(work.folder.path.parent, work.store_id, ray.util.get_node_ip_address())
        train_job(
            job.job,
            work.data_path,
            work.folder.path,
            device=str(ray.train.torch.get_device()),
            num_threads=job.resources.num_threads,
            workers=workers,
            should_stop=SharedStop(workers, work.folder.stop.exists, job.job.training),
        )
    except TrainingStopped:
        return
    except RememeError as error:
        # Training is deterministic, so the error would come back: the workers that Ray Train starts again find the
        # file and end. Raising is what ends the other workers, which wait for this one's gradients.
        write_text(work.folder.failure, str(error))
        raise


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray Train's own sentence comes first, and the worker's error last.
    return lines[-1] if lines else type(error).__name__

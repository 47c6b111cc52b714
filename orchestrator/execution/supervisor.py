"""Starts, watches, restarts and ends the Ray actors that train experts.

What to do is decided in orchestrator/plan/supervision.py, without Ray; this module looks, and does it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from orchestrator.execution.actor import ActorReport, ExpertActor
from orchestrator.execution.cluster import alive_nodes, is_alive, with_resources
from orchestrator.execution.stopping import STOP_TIMEOUT_S, stop_signals
from orchestrator.plan import events, supervision
from orchestrator.plan.events import EventListener, ExpertEvent
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.outcome import TrainingOutcome
from orchestrator.plan.policies import FailureKind
from orchestrator.plan.supervision import AskToStop, Fleet, Kill, Release, Running, Step, Submitted, Tell
from orchestrator.store.experts import Claim, ExpertStore
from workloads.config import ExecutionConfig, Resources
from workloads.training.records import TrainingRecord
from workloads.training.result import TrainingStopped

POLL_INTERVAL_S = 1.0
"""Every look costs a little of the cores that experts train on."""


@dataclass
class _Process:
    """The actor of a submitted expert, and how far it has been heard."""

    job: PlannedJob
    actor: Any
    done: Any
    """Reference of train()."""

    asked: Any = None
    """Reference of the poll() under way."""

    asked_s: float = 0.0
    num_records: int = 0
    checkpoint_images: int = 0
    node_id: str = ""
    """Empty until it has answered."""


def train_experts(
    jobs: Sequence[PlannedJob],
    data_path: Path,
    store: ExpertStore,
    execution: ExecutionConfig,
    listeners: Sequence[EventListener] = (),
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Train what the store lacks, as many at once as the connected cluster holds, the longest first.

    An expert that dies is started again from its last checkpoint; one that fails for good does not stop the others.
    One that another driver trains is waited for, and taken over if that driver goes away. The first Ctrl-C or SIGTERM,
    or should_stop(), asks for checkpoints; a second Ctrl-C gives up waiting for them.
    """
    outcome = TrainingOutcome()
    missing = {}
    for job in jobs:
        result = store.completed(job.key)
        if result is None:
            missing[job.key] = job
        else:
            outcome.completed[job.key] = result
            for listener in listeners:
                listener(events.Reused(job.key))
    if missing:
        supervisor = _Supervisor(missing, data_path, store, execution, listeners, outcome, should_stop)
        with stop_signals(supervisor.stop_requested):
            supervisor.run()
    return outcome


class _Supervisor:
    def __init__(
        self,
        missing: dict[str, PlannedJob],
        data_path: Path,
        store: ExpertStore,
        execution: ExecutionConfig,
        listeners: Sequence[EventListener],
        outcome: TrainingOutcome,
        should_stop: Callable[[], bool],
    ) -> None:
        self._fleet = Fleet.of(missing, execution.max_attempts)
        self._data_path = data_path
        self._store = store
        self._heartbeat_timeout_s = execution.heartbeat_timeout_s
        self._listeners = listeners
        self._outcome = outcome
        self._processes: dict[str, _Process] = {}
        self._free: list[_Process] = []
        """Done; their actors hold their resources until they get another expert or are ended."""

        self._claims: dict[str, Claim] = {}
        self._should_stop = should_stop
        self.stop_requested = threading.Event()

    def run(self) -> None:
        """Until nothing waits or runs, or a stop was asked for."""
        for key in self._fleet.queue:
            self._tell(events.Queued(key))
        try:
            while not self._fleet.is_over:
                if self.stop_requested.is_set() or self._should_stop():
                    self._stop_all()
                    break
                self._look_elsewhere()
                self._hand_over()
                self._start_what_fits()
                self._end_free()
                self._collect(POLL_INTERVAL_S)
                self._poll()
        finally:
            for process in [*self._processes.values(), *self._free]:
                ray.kill(process.actor)
            for key in list(self._claims):
                self._release(key)
            self._outcome.failed |= self._fleet.failed
            self._outcome.stopped += self._fleet.stopped

    def _saw(self, seen: supervision.Observation) -> None:
        self._take(supervision.after(self._fleet, seen))

    def _take(self, step: Step) -> None:
        """Carry a decision out."""
        self._fleet = step.fleet
        for action in step.actions:
            match action:
                case Tell(event=event):
                    self._tell(event)
                case Release(key=key):
                    self._release(key)
                case AskToStop(key=key):
                    self._processes[key].actor.stop.remote(key)
                case Kill(key=key):
                    ray.kill(self._processes[key].actor)
                    if key not in self._fleet.those(Running):  # else its end is still to be collected
                        del self._processes[key]

    def _look_elsewhere(self) -> None:
        """Take what other drivers have finished, and what they have let go of."""
        for key in self._fleet.those(supervision.Elsewhere):
            if not self._found(key) and self._claim(key):
                self._saw(supervision.LetGo(key))

    def _found(self, key: str) -> bool:
        """Whether another driver has finished the key; its result is then ours."""
        result = self._store.completed(key)
        if result is None:
            return False
        self._outcome.completed[key] = result
        self._saw(supervision.Found(key))
        return True

    def _claim(self, key: str) -> bool:
        """Whether this driver may train the key."""
        if key not in self._claims and (claim := self._store.claim(key)) is not None:
            self._claims[key] = claim
        return key in self._claims

    def _release(self, key: str) -> None:
        if key in self._claims:
            self._claims.pop(key).release()

    def _start_what_fits(self) -> None:
        if not self._fleet.queue:
            return
        now_s, nodes = time.monotonic(), alive_nodes()
        while (start := supervision.next_start(self._fleet, nodes, now_s)) is not None:
            if not self._claim(start.key):
                self._saw(supervision.Refused(start.key))
            elif not self._found(start.key):  # another driver may just have been done with it
                self._start(start)

    def _start(self, start: supervision.Start) -> None:
        job = self._fleet.jobs[start.key]
        actor = self._free_actor(job.resources)
        is_ahead = actor is None and start.is_ahead
        if actor is None:
            actor = with_resources(ExpertActor, job.resources).remote(self._store.identity)
        self._submit(job, actor)
        self._saw(supervision.HandedIn(start.key, is_ahead))

    def _submit(self, job: PlannedJob, actor: Any) -> None:
        done = actor.train.remote(job, self._data_path, self._store.path(job.key))
        self._processes[job.key] = _Process(job, actor, done)

    def _hand_over(self) -> None:
        """Processes that are free, and have imported everything, go to the experts that wait for ones like them."""
        for key in self._fleet.those(Submitted):
            phase = self._fleet.phases[key]
            if not (isinstance(phase, Submitted) and phase.is_ahead):
                continue
            waiting = self._processes[key]
            if (actor := self._free_actor(waiting.job.resources)) is not None:
                ray.kill(waiting.actor)
                self._submit(waiting.job, actor)
                self._saw(supervision.HandedIn(key, is_takeover=True))

    def _free_actor(self, resources: Resources) -> Any:
        """A free actor that holds just these, None if there is none; it is not free any more."""
        for process in self._free:
            if process.job.resources == resources:
                self._free.remove(process)
                return process.actor
        return None

    def _end_free(self) -> None:
        # A handle that is kept keeps its CPU, and the next expert would never start.
        while self._free:
            ray.kill(self._free.pop().actor)

    def _collect(self, timeout_s: float) -> None:
        """Take in experts that ended, well or not."""
        if not self._processes:
            time.sleep(timeout_s)
            return
        by_reference = {process.done: key for key, process in self._processes.items()}
        ended, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=timeout_s)
        for reference in ended:
            self._end(by_reference[reference])

    def _end(self, key: str) -> None:
        process = self._processes.pop(key)
        try:
            result, records = ray.get(process.done)
        except RayError as error:
            ray.kill(process.actor)
            self._saw(self._why_ended(key, process, error))
            return
        self._free.append(process)
        self._hand_on(process, records[process.num_records :])
        self._store.publish(key)
        self._outcome.completed[key] = result
        self._outcome.trained.add(key)
        self._saw(supervision.Finished(key))

    def _why_ended(self, key: str, process: _Process, error: RayError) -> supervision.Observation:
        if isinstance(getattr(error, "cause", None), TrainingStopped):
            return supervision.StoppedOnRequest(key)
        kind, cause = self._diagnose(key, process, error)
        return supervision.Broke(key, kind, cause, time.monotonic())

    def _diagnose(self, key: str, process: _Process, error: RayError) -> tuple[FailureKind, str]:
        if isinstance(error, RayTaskError):
            return FailureKind.RAISED, str(error.cause) or repr(error.cause)
        phase = self._fleet.phases[key]
        if isinstance(phase, Running) and phase.is_silent:
            return FailureKind.NOT_ANSWERING, f"no answer for {self._heartbeat_timeout_s:g} s"
        if process.node_id and not is_alive(process.node_id):
            return FailureKind.NODE_LOST, ""
        cause = "" if isinstance(error, RayActorError) else str(error).splitlines()[0]
        return FailureKind.PROCESS_DIED, cause

    def _poll(self) -> None:
        """Fetch new records; an actor that has answered once and then falls silent is killed."""
        now_s = time.monotonic()
        for key, process in self._processes.items():
            if process.asked is None:
                process.asked = process.actor.poll.remote(key, process.num_records)
                process.asked_s = now_s
                continue
            answered, _ = ray.wait([process.asked], timeout=0)
            if answered:
                self._take_answer(key, process)
            elif process.node_id and now_s - process.asked_s > self._heartbeat_timeout_s:
                self._saw(supervision.FellSilent(key))

    def _take_answer(self, key: str, process: _Process) -> None:
        reference, process.asked = process.asked, None
        try:
            report: ActorReport = ray.get(reference)
        except RayError:
            return  # train() of the same actor fails too, and is what counts
        if not process.node_id:
            process.node_id = report.node_id
            self._saw(supervision.Answered(key, report.pid))
        self._hand_on(process, report.records)
        if report.checkpoint_images > process.checkpoint_images:
            process.checkpoint_images = report.checkpoint_images
            self._tell(events.Checkpointed(key, report.checkpoint_images))

    def _hand_on(self, process: _Process, records: Sequence[TrainingRecord]) -> None:
        process.num_records += len(records)
        if records:
            self._tell(events.Progressed(process.job.key, tuple(records)))

    def _stop_all(self) -> None:
        self._take(supervision.when_asked_to_stop(self._fleet))
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self._processes and time.monotonic() < deadline_s:
            self._collect(POLL_INTERVAL_S)
        self._fleet = supervision.when_stop_is_over(self._fleet)

    def _tell(self, event: ExpertEvent) -> None:
        for listener in self._listeners:
            listener(event)

"""Ray actors that train experts, and the loop that starts, watches, restarts and ends them.

What to do is decided in orchestrator/policies.py; this module does it.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from orchestrator.execution.actor import ExpertActor, Status
from orchestrator.execution.cluster import alive_nodes, is_alive, with_resources
from orchestrator.plan.errors import ExpertFailedError
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.policies import (
    FailureKind,
    GiveUp,
    after_failure,
    longest_first,
    num_slots,
)
from orchestrator.store.experts import Claim, ExpertStore
from workloads.config import ExecutionConfig, Resources
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult, TrainingStopped

POLL_INTERVAL_S = 1.0
"""Every look costs a little of the cores that experts train on."""

STOP_TIMEOUT_S = 60.0
NUM_QUEUED_AHEAD = 1
"""Actors submitted beyond what fits now: takes over a slot at once, and shows an autoscaler that there is demand."""


class Listener(Protocol):
    """Hears what happens to experts; implemented by the terminal view and the tracker."""

    def on_state(self, key: str, state: str, detail: str = "") -> None:
        """States: reused, queued, elsewhere, starting, training, restarting, done, failed, stopped."""

    def on_records(self, key: str, records: Sequence[TrainingRecord]) -> None:
        """New records of one expert, oldest first."""


@dataclass
class _Running:
    """An expert that has an actor."""

    planned: PlannedJob
    actor: Any
    done: Any
    """Reference of train()."""

    is_ahead: bool = False
    """Submitted beyond what fits, so probably still without a process."""

    asked: Any = None
    """Reference of the poll() under way."""

    asked_s: float = 0.0
    num_records: int = 0
    status: Status | None = None
    not_answering: bool = False


@dataclass
class TrainingOutcome:
    """What came of the experts, by key."""

    completed: dict[str, JobResult] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    """Those of the completed that were trained here and now, not found or waited for."""

    failed: dict[str, str] = field(default_factory=dict)
    """One sentence each."""

    stopped: list[str] = field(default_factory=list)


def train_experts(
    jobs: Sequence[PlannedJob],
    data_path: Path,
    store: ExpertStore,
    execution: ExecutionConfig,
    listeners: Sequence[Listener] = (),
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
    for planned in jobs:
        result = store.completed(planned.key)
        if result is None:
            missing[planned.key] = planned
        else:
            outcome.completed[planned.key] = result
            for listener in listeners:
                listener.on_state(planned.key, "reused")
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
        listeners: Sequence[Listener],
        outcome: TrainingOutcome,
        should_stop: Callable[[], bool],
    ) -> None:
        self._jobs = missing
        self._data_path = data_path
        self._store = store
        self._execution = execution
        self._listeners = listeners
        self._outcome = outcome
        self._waiting = longest_first({key: planned.expected_macs for key, planned in missing.items()})
        self._not_before_s: dict[str, float] = {}
        self._attempts = dict.fromkeys(missing, 0)
        self._running: dict[str, _Running] = {}
        self._free: list[_Running] = []
        """Done; their actors hold their resources until they get another expert or are ended."""

        self._claims: dict[str, Claim] = {}
        self._elsewhere: list[str] = []
        """Claimed by other drivers."""

        self._should_stop = should_stop
        self.stop_requested = threading.Event()

    def run(self) -> None:
        """Until nothing waits or runs, or a stop was asked for."""
        for key in self._waiting:
            self._tell(key, "queued")
        try:
            while self._waiting or self._running or self._elsewhere:
                if self.stop_requested.is_set() or self._should_stop():
                    self._stop_all()
                    return
                self._look_elsewhere()
                self._hand_over()
                self._submit()
                self._end_free()
                self._collect(POLL_INTERVAL_S)
                self._poll()
        finally:
            for running in [*self._running.values(), *self._free]:
                ray.kill(running.actor)
            for key in list(self._claims):
                self._release(key)

    def _look_elsewhere(self) -> None:
        """Take what other drivers have finished, and what they have let go of."""
        for key in list(self._elsewhere):
            if self._found(key):
                self._elsewhere.remove(key)
            elif self._claim(key):
                self._elsewhere.remove(key)
                self._waiting.insert(0, key)

    def _found(self, key: str) -> bool:
        """Whether another driver has finished the key; its result is then ours."""
        result = self._store.completed(key)
        if result is None:
            return False
        self._release(key)
        self._outcome.completed[key] = result
        self._tell(key, "reused")
        return True

    def _claim(self, key: str) -> bool:
        """Whether this driver may train the key."""
        if key not in self._claims and (claim := self._store.claim(key)) is not None:
            self._claims[key] = claim
        return key in self._claims

    def _release(self, key: str) -> None:
        if key in self._claims:
            self._claims.pop(key).release()

    def _submit(self) -> None:
        """Start waiting experts while there is room, and a little beyond."""
        if not self._waiting:
            return
        now_s = time.monotonic()
        nodes = alive_nodes()
        for key in list(self._waiting):
            if self._not_before_s.get(key, 0.0) > now_s:
                continue
            resources = self._jobs[key].resources
            requests = [*(running.planned.resources for running in self._running.values()), resources]
            num_ahead = len(requests) - num_slots(requests, nodes)
            if num_ahead > NUM_QUEUED_AHEAD:
                break
            self._waiting.remove(key)
            if not self._claim(key):
                self._elsewhere.append(key)
                self._tell(key, "elsewhere")
                continue
            if self._found(key):  # another driver was just done with it
                continue
            actor = self._free_actor(resources)
            is_ahead = actor is None and num_ahead > 0
            if actor is None:
                actor = with_resources(ExpertActor, resources).remote(self._store.identity)
            self._running[key] = self._start(self._jobs[key], actor, is_ahead)
            self._attempts[key] += 1
            self._tell(key, "starting" if self._attempts[key] == 1 else "restarting")

    def _start(self, planned: PlannedJob, actor: Any, is_ahead: bool) -> _Running:
        done = actor.train.remote(planned, self._data_path, self._store.path(planned.key))
        return _Running(planned, actor, done, is_ahead)

    def _hand_over(self) -> None:
        """Processes that are free, and have imported everything, go to the experts that wait for ones like them."""
        for key, waiting in self._running.items():
            if waiting.is_ahead and waiting.status is None and (actor := self._free_actor(waiting.planned.resources)):
                ray.kill(waiting.actor)
                self._running[key] = self._start(waiting.planned, actor, is_ahead=False)

    def _free_actor(self, resources: Resources) -> Any:
        """A free actor that holds just these, None if there is none; it is not free any more."""
        for running in self._free:
            if running.planned.resources == resources:
                self._free.remove(running)
                return running.actor
        return None

    def _end_free(self) -> None:
        # A handle that is kept keeps its CPU, and the next expert would never start.
        while self._free:
            ray.kill(self._free.pop().actor)

    def _collect(self, timeout_s: float) -> None:
        """Take in experts that ended, well or not."""
        if not self._running:
            time.sleep(timeout_s)
            return
        by_reference = {running.done: key for key, running in self._running.items()}
        ended, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=timeout_s)
        for reference in ended:
            self._end(by_reference[reference])

    def _end(self, key: str) -> None:
        running = self._running.pop(key)
        try:
            result, records = ray.get(running.done)
        except RayError as error:
            ray.kill(running.actor)
            self._fail(key, running, error)
            return
        self._free.append(running)
        self._hand_on(running, records[running.num_records :])
        self._store.publish(key)
        self._release(key)
        self._outcome.completed[key] = result
        self._outcome.trained.add(key)
        self._tell(key, "done")

    def _fail(self, key: str, running: _Running, error: RayError) -> None:
        kind, cause = self._diagnose(running, error)
        if isinstance(getattr(error, "cause", None), TrainingStopped):
            self._outcome.stopped.append(key)
            self._release(key)
            self._tell(key, "stopped")
            return
        if kind is FailureKind.NODE_LOST:
            self._attempts[key] -= 1
        decision = after_failure(
            kind, attempts=self._attempts[key], max_attempts=self._execution.max_attempts, cause=cause
        )
        if isinstance(decision, GiveUp):
            failure = ExpertFailedError(running.planned.name, self._attempts[key], decision.reason)
            self._outcome.failed[key] = str(failure)
            self._release(key)
            self._tell(key, "failed", decision.reason)
            return
        self._not_before_s[key] = time.monotonic() + decision.delay_s
        self._waiting.insert(0, key)  # it was started early because it is long
        self._tell(key, "restarting", kind.value)

    def _diagnose(self, running: _Running, error: RayError) -> tuple[FailureKind, str]:
        if isinstance(error, RayTaskError):
            return FailureKind.RAISED, str(error.cause) or repr(error.cause)
        if running.not_answering:
            return FailureKind.NOT_ANSWERING, f"no answer for {self._execution.heartbeat_timeout_s:g} s"
        if running.status is not None and not is_alive(running.status.node_id):
            return FailureKind.NODE_LOST, ""
        cause = "" if isinstance(error, RayActorError) else str(error).splitlines()[0]
        return FailureKind.PROCESS_DIED, cause

    def _poll(self) -> None:
        """Fetch new records; an actor that has answered once and then falls silent is killed."""
        now_s = time.monotonic()
        for running in self._running.values():
            if running.asked is None:
                running.asked = running.actor.poll.remote(running.planned.key, running.num_records)
                running.asked_s = now_s
                continue
            answered, _ = ray.wait([running.asked], timeout=0)
            if answered:
                self._take_answer(running)
            elif running.status is not None and now_s - running.asked_s > self._execution.heartbeat_timeout_s:
                running.not_answering = True
                ray.kill(running.actor)

    def _take_answer(self, running: _Running) -> None:
        reference, running.asked = running.asked, None
        try:
            status: Status = ray.get(reference)
        except RayError:
            return  # train() of the same actor fails too, and is what counts
        if running.status is None:
            self._tell(running.planned.key, "training", f"pid {status.pid}")
        running.status = status
        self._hand_on(running, status.records)

    def _hand_on(self, running: _Running, records: Sequence[TrainingRecord]) -> None:
        running.num_records += len(records)
        if records:
            for listener in self._listeners:
                listener.on_records(running.planned.key, records)

    def _stop_all(self) -> None:
        """Let every expert that trains write a checkpoint; the others have nothing to lose."""
        self._outcome.stopped += self._waiting + self._elsewhere
        self._waiting.clear()
        self._elsewhere.clear()
        for key, running in list(self._running.items()):
            if running.status is None:
                ray.kill(running.actor)
                del self._running[key]
                self._outcome.stopped.append(key)
            else:
                running.actor.stop.remote(key)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self._running and time.monotonic() < deadline_s:
            self._collect(POLL_INTERVAL_S)
        self._outcome.stopped += [*self._running, *self._waiting]

    def _tell(self, key: str, state: str, detail: str = "") -> None:
        for listener in self._listeners:
            listener.on_state(key, state, detail)


@contextmanager
def stop_signals(stop_requested: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets the event, the second interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:  # noqa: ARG001
        if stop_requested.is_set():
            raise KeyboardInterrupt
        stop_requested.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

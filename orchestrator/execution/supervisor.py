"""Starts, watches, restarts and ends the Ray actors that train experts.

What to do is decided in orchestrator/plan/supervision.py, without Ray; this module looks, and does it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from orchestrator.execution.cluster import dead_nodes, died_with_node, leaving_nodes, require_nodes, staying_nodes
from orchestrator.execution.processes import Ending, ExpertProcesses, Heard, Member
from orchestrator.execution.stopping import STOP_TIMEOUT_S, stop_signals
from orchestrator.plan import events, observations, supervision
from orchestrator.plan.events import EventListener, ExpertEvent
from orchestrator.plan.growing import lacking_places
from orchestrator.plan.jobs import PlannedJob
from orchestrator.plan.outcome import TrainingOutcome
from orchestrator.plan.policies import FailureKind
from orchestrator.plan.supervision import AskToStop, Fleet, Kill, Release, Running, Step, Tell
from orchestrator.plan.watchdog import Watchdog
from orchestrator.store.experts import Claim, ExpertStore
from orchestrator.store.storage import Folder
from workloads.config import ExecutionConfig
from workloads.errors import WorkersPartedError
from workloads.training.result import TrainingStopped

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
"""Every look costs a little of the cores that experts train on."""

NODES_INTERVAL_S = 5.0
"""Between looks at the nodes: who waits in vain is told within 10 s."""


def train_experts(
    jobs: Sequence[PlannedJob],
    data: Folder,
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
            store.publish(job.key)  # what an earlier run could not
            events.tell(listeners, events.Reused(job.key))
    if missing:
        supervisor = _Supervisor(missing, data, store, execution, listeners, outcome, should_stop)
        with stop_signals(supervisor.stop_requested):
            supervisor.run()
    return outcome


class _Supervisor:
    """Looks, asks orchestrator/plan/supervision.py, acts."""

    def __init__(
        self,
        missing: dict[str, PlannedJob],
        data: Folder,
        store: ExpertStore,
        execution: ExecutionConfig,
        listeners: Sequence[EventListener],
        outcome: TrainingOutcome,
        should_stop: Callable[[], bool],
    ) -> None:
        self._fleet = Fleet.of(missing, execution.max_attempts, execution.wait_timeout_s, execution.grow_every_s)
        self._store = store
        self._heartbeat_timeout_s = execution.heartbeat_timeout_s
        self._listeners = listeners
        self._outcome = outcome
        self._processes = ExpertProcesses(store.site, data)
        self._claims: dict[str, Claim] = {}
        self._watchdog = Watchdog(execution.watchdog_s)
        self._looked_s = float("-inf")
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
                # Free processes go to those that wait for one, then to new ones; what is left then gives its CPU back.
                self._look_elsewhere()
                self._look_at_nodes()
                self._leave_nodes()
                self._grow()
                self._hand_over()
                self._start_what_fits()
                self._processes.end_free()
                self._collect()
                self._listen()
        finally:
            # Processes end before their claims, or another driver could begin while they still write.
            self._processes.close()
            for key in list(self._claims):
                self._release(key)
            self._outcome.failed |= self._fleet.failed
            self._outcome.stopped += self._fleet.stopped

    def _saw(self, seen: observations.Observation) -> None:
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
                    self._processes.stop(key)
                case Kill(key=key):
                    self._processes.kill(key)
                    if isinstance(self._fleet.phases[key], supervision.Ended):
                        self._processes.forget(key)

    def _look_elsewhere(self) -> None:
        """Take what other drivers have finished, and what they have let go of."""
        for key in self._fleet.those(supervision.Elsewhere):
            if not self._found(key) and self._claim(key):
                self._saw(observations.LetGo(key))

    def _found(self, key: str) -> bool:
        """Whether another driver has finished the key; its result is then ours."""
        result = self._store.completed(key)
        if result is None:
            return False
        self._outcome.completed[key] = result
        self._saw(observations.Found(key))
        return True

    def _claim(self, key: str) -> bool:
        """Whether this driver may train the key."""
        if key not in self._claims and (claim := self._store.claim(key)) is not None:
            self._claims[key] = claim
        return key in self._claims

    def _release(self, key: str) -> None:
        if key in self._claims:
            self._claims.pop(key).release()

    def _look_at_nodes(self) -> None:
        """Judge those whose process vanished, and say who waits for what no node has."""
        now_s = time.monotonic()
        if not (missing := self._fleet.those(supervision.Missing)) and now_s - self._looked_s < NODES_INTERVAL_S:
            return
        self._looked_s = now_s
        require_nodes()
        if missing:
            for seen in supervision.verdicts(self._fleet, dead_nodes(), now_s):
                self._saw(seen)
        self._take(supervision.check_places(self._fleet, staying_nodes(), now_s))

    def _leave_nodes(self) -> None:
        """Let experts on a node that is about to be taken away write a checkpoint; they go on elsewhere."""
        for key in self._processes.on_nodes(leaving_nodes()):
            if self._fleet.phases[key] == Running():
                self._saw(observations.Noticed(key))

    def _start_what_fits(self) -> None:
        if not self._fleet.queue:
            return
        now_s, nodes = time.monotonic(), staying_nodes()
        while (start := supervision.next_start(self._fleet, nodes, now_s)) is not None:
            if not self._claim(start.key):
                self._saw(observations.Refused(start.key))
            elif not self._found(start.key):  # another driver may just have been done with it
                has_process = self._processes.start(self._fleet.jobs[start.key].by(start.num_workers))
                is_ahead = start.is_ahead and not has_process
                self._saw(observations.HandedIn(start.key, is_ahead, has_process, num_workers=start.num_workers))

    def _grow(self) -> None:
        """Let groups for whose missing workers there is room write a checkpoint; all of them go on from there."""
        for key in self._processes.make_room(lacking_places(self._fleet, time.monotonic())):
            if self._fleet.phases[key] == Running():
                self._saw(observations.GivenRoom(key))

    def _hand_over(self) -> None:
        """Processes that are free go to the experts that wait for ones like them."""
        for key in supervision.heirs(self._fleet):
            if self._processes.hand_over(key):
                self._saw(observations.HandedIn(key, is_takeover=True))

    def _collect(self) -> None:
        """Take in experts that ended, well or not."""
        for key, ending in self._processes.collect(POLL_INTERVAL_S):
            self._watchdog.forget(key)
            if ending.result is None:
                self._saw(self._why_ended(key, ending))
                continue
            self._pass_on_remarks(key, ending.remarks)
            if ending.records:
                self._tell(events.Progressed(key, ending.records))
            # Before it is told: who hears of the end may look for it at the remote.
            self._store.publish(key)
            self._outcome.completed[key] = ending.result
            self._outcome.trained.add(key)
            self._saw(observations.Finished(key))

    def _why_ended(self, key: str, ending: Ending) -> observations.Observation:
        error, member = ending.error, ending.member
        assert error is not None
        assert member is not None
        if isinstance(getattr(error, "cause", None), TrainingStopped):
            return observations.StoppedOnRequest(key, time.monotonic())
        if isinstance(error, ActorUnavailableError) and member.has_answered:
            # The connection broke. When a whole node dies, this is all there is to see of it for some 12 s.
            return observations.Vanished(key, member.node_id, time.monotonic())
        kind, cause = self._diagnose(key, member, error)
        return observations.Broke(key, kind, cause, time.monotonic())

    def _diagnose(self, key: str, member: Member, error: RayError) -> tuple[FailureKind, str]:
        if isinstance(error, RayTaskError):
            kind = FailureKind.WORKERS_PARTED if isinstance(error.cause, WorkersPartedError) else FailureKind.RAISED
            return kind, str(error.cause) or repr(error.cause)
        if isinstance(error, RayActorError) and error.preempted:
            return FailureKind.PREEMPTED, ""
        if member.node_id in dead_nodes() or (isinstance(error, RayActorError) and died_with_node(error.actor_id)):
            return FailureKind.NODE_LOST, ""
        phase = self._fleet.phases[key]
        if isinstance(phase, Running) and phase.is_silent:
            return FailureKind.NOT_ANSWERING, f"no answer for {self._heartbeat_timeout_s:g} s"
        if isinstance(error, OutOfMemoryError):
            return FailureKind.OUT_OF_MEMORY, "lower training.batch_size, or let fewer experts share a node"
        cause = "" if isinstance(error, RayActorError) else str(error).splitlines()[0]
        return FailureKind.PROCESS_DIED, cause

    def _listen(self) -> None:
        """Hear of progress; an actor that has answered once and then falls silent is killed."""
        answers, silent = self._processes.poll(self._heartbeat_timeout_s)
        for key, heard in answers:
            self._pass_on(key, heard)
        for key in silent:
            self._saw(observations.FellSilent(key))
        for event in self._watchdog.overdue(time.monotonic()):
            self._tell(event)

    def _pass_on(self, key: str, heard: Heard) -> None:
        report, process, now_s = heard.report, heard.process, time.monotonic()
        self._watchdog.saw(key, now_s if process.has_trained else report.num_steps, now_s, report.node)
        if heard.is_first:
            pid = report.pid if len(process.members) == 1 else None
            self._saw(observations.Answered(key, pid, report.node, now_s))
        self._pass_on_remarks(key, report.remarks)
        if report.records:
            self._tell(events.Progressed(key, tuple(report.records)))
        if report.checkpoint_images > process.checkpoint_images:
            process.checkpoint_images = report.checkpoint_images
            self._tell(events.Checkpointed(key, report.checkpoint_images))

    def _pass_on_remarks(self, key: str, remarks: Sequence[str]) -> None:
        for remark in remarks:
            logger.warning("%s: %s", self._fleet.jobs[key].name, remark)

    def _stop_all(self) -> None:
        self._take(supervision.when_asked_to_stop(self._fleet))
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self._processes and time.monotonic() < deadline_s:
            self._collect()
        self._take(supervision.when_stop_is_over(self._fleet))

    def _tell(self, event: ExpertEvent) -> None:
        events.tell(self._listeners, event)

"""What the supervisor decides, one observation after the other, without Ray; and events that cross processes."""

import dataclasses
import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.plan import events
from orchestrator.plan import supervision as sv
from orchestrator.plan.events import ExpertEvent, ExpertState
from orchestrator.plan.growing import lacking_places
from orchestrator.plan.jobs import Plan, Request, make_plan
from orchestrator.plan.policies import MAX_DELAY_S, FailureKind, num_queued_ahead
from workloads.config import DataSpec, Resources, RunConfig
from workloads.training.records import TrainingRecord

TWO_SLOTS = [{"CPU": 2.0}]
DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


class Simulated:
    """A fleet, and all that was decided about it."""

    def __init__(self, plan: Plan, max_attempts: int = 3) -> None:
        self.fleet = sv.Fleet.of(plan.by_key, max_attempts)
        self.keys = self.fleet.queue
        self.actions: list[sv.Action] = []

    def see(self, *seen: sv.Observation) -> None:
        for one in seen:
            self.take(sv.after(self.fleet, one))

    def take(self, step: sv.Step) -> None:
        self.fleet = step.fleet
        self.actions += step.actions

    def start(self, nodes: Sequence[dict[str, float]] = TWO_SLOTS, now_s: float = 0.0) -> list[sv.Start]:
        """Hand in everything that may start."""
        started = []
        while (start := sv.next_start(self.fleet, nodes, now_s)) is not None:
            started.append(start)
            self.see(sv.HandedIn(start.key, start.is_ahead, num_workers=start.num_workers))
        return started

    @property
    def told(self) -> list[tuple[str, ExpertState]]:
        return [(one.event.key, one.event.state) for one in self.actions if isinstance(one, sv.Tell)]

    def phase(self, key: str) -> sv.Phase:
        return self.fleet.phases[key]


def test_the_longest_start_first_as_many_as_fit_and_one_ahead(plan: Plan) -> None:
    fleet = Simulated(plan)
    macs = [plan.by_key[key].expected_macs for key in fleet.keys]
    assert macs == sorted(macs, reverse=True)
    started = fleet.start()
    assert [(start.key, start.is_ahead) for start in started] == list(
        zip(fleet.keys, (False, False, True), strict=False)
    )
    fleet.see(sv.Finished(fleet.keys[0]))
    assert [start.key for start in fleet.start()] == [fleet.keys[3]]
    assert fleet.told[-1] == (fleet.keys[3], ExpertState.STARTING)


def test_groups_start_whole_and_say_how_many_they_are(tiny_run: dict[str, Any]) -> None:
    plan = make_plan(RunConfig.model_validate(tiny_run | {"execution": {"workers_per_expert": 2}}), DATA)
    fleet = Simulated(plan)
    started = fleet.start([{"CPU": 3.0}, {"CPU": 2.0}])
    assert [start.is_ahead for start in started] == [False, False, True]
    said = [one.event for one in fleet.actions if isinstance(one, sv.Tell)]
    assert said == [events.Starting(start.key, 1, num_workers=2) for start in started]


def test_a_group_shrinks_with_the_cluster_and_grows_back_after_a_while(tiny_run: dict[str, Any]) -> None:
    raw = tiny_run | {"strategy": {"kind": "single"}, "execution": {"workers_per_expert": 4, "min_workers": 2}}
    fleet = Simulated(make_plan(RunConfig.model_validate(raw), DATA), max_attempts=1)
    fleet.fleet, (key,) = dataclasses.replace(fleet.fleet, grow_every_s=100.0), fleet.keys
    assert fleet.start([{"CPU": 2.0}, {"CPU": 2.0}]) == [sv.Start(key, False, 4)]
    fleet.see(sv.Answered(key, now_s=10.0), sv.Broke(key, FailureKind.NODE_LOST, "", now_s=500.0))
    assert fleet.start([{"CPU": 3.0}], now_s=500.0) == [sv.Start(key, False, 2)]  # 3 have no equal parts of 16 images
    assert fleet.actions[-1] == sv.Tell(events.Starting(key, 1, num_workers=2))
    assert lacking_places(fleet.fleet, now_s=1000.0) == {}  # it does not run yet
    fleet.see(sv.Answered(key, now_s=510.0))
    assert lacking_places(fleet.fleet, now_s=609.0) == {}
    assert lacking_places(fleet.fleet, now_s=610.0) == {key: Request(Resources(), 2)}
    fleet.see(sv.GivenRoom(key))
    assert fleet.actions[-1] == sv.AskToStop(key)
    assert lacking_places(fleet.fleet, now_s=611.0)  # the places are held until it has ended
    fleet.see(sv.StoppedOnRequest(key, now_s=612.0))
    assert fleet.actions[-1] == sv.Tell(events.Restarting(key, FailureKind.OUTGROWN, attempt=1))
    assert fleet.start([{"CPU": 3.0}, {"CPU": 2.0}], now_s=612.0) == [sv.Start(key, False, 4)]
    fleet.see(sv.Answered(key, now_s=620.0))
    assert lacking_places(fleet.fleet, now_s=1e9) == {}  # it has what it wants


def test_groups_do_not_grow_while_others_wait_for_a_place(tiny_run: dict[str, Any]) -> None:
    raw = tiny_run | {"execution": {"workers_per_expert": 4, "min_workers": 2}}
    fleet = Simulated(make_plan(RunConfig.model_validate(raw), DATA))
    fleet.fleet = dataclasses.replace(fleet.fleet, grow_every_s=0.0)
    started = fleet.start([{"CPU": 6.0}])
    assert [(start.num_workers, start.is_ahead) for start in started] == [(4, False), (2, False), (2, True)]
    whole, small, ahead = (start.key for start in started)
    fleet.see(sv.Answered(whole), sv.Answered(small))
    assert lacking_places(fleet.fleet, now_s=1.0) == {}
    fleet.see(sv.Finished(whole), sv.Answered(ahead))
    assert fleet.start([{"CPU": 6.0}])
    (last,) = fleet.fleet.those(sv.Submitted)
    assert lacking_places(fleet.fleet, now_s=1.0) == {}
    fleet.see(sv.Answered(last), sv.Finished(small))
    assert set(lacking_places(fleet.fleet, now_s=1.0)) == {ahead, last}


def test_an_autoscaler_sees_half_as_many_again_and_the_longest_of_these_inherit_first(tiny_run: dict[str, Any]) -> None:
    raw = tiny_run | {"strategy": {"kind": "meme", "experts": [{"specialisation": 0.1}] * 12}}
    plan = make_plan(RunConfig.model_validate(raw), DATA)
    fleet = Simulated(plan)
    assert [start.is_ahead for start in fleet.start([{"CPU": 1.0}] * 6)] == [False] * 6 + [True] * 3
    running, (first, *others) = fleet.keys[:6], fleet.keys[6:9]
    fleet.see(*(sv.Answered(key, pid=1) for key in running))
    longer = {others[1]: dataclasses.replace(plan.by_key[others[1]], macs=10**12)}
    fleet.fleet = dataclasses.replace(fleet.fleet, jobs={**plan.by_key, **longer})
    assert sv.heirs(fleet.fleet) == [others[1], first, others[0]]


def test_who_was_submitted_first_has_its_place(tiny_run: dict[str, Any]) -> None:
    """One that waits for the whole node does not take the room of those that run beside it."""
    wants = [{"num_cpus": 4}, {"num_cpus": 1}, {"num_cpus": 1}, {"num_cpus": 1}]
    experts = [expert | {"resources": one} for expert, one in zip(tiny_run["strategy"]["experts"], wants, strict=True)]
    raw = tiny_run | {"strategy": tiny_run["strategy"] | {"experts": experts}}
    plan = make_plan(RunConfig.model_validate(raw), DATA)
    whole, *small = [job.key for job in plan.jobs]
    fleet = Simulated(plan)
    fleet.fleet = dataclasses.replace(fleet.fleet, queue=(small[0], whole, *small[1:]))
    assert [(start.key, start.is_ahead) for start in fleet.start([{"CPU": 4.0}])] == [
        (small[0], False),
        (whole, True),
        (small[1], True),
        (small[2], True),
    ]


def test_a_dead_process_is_started_again_at_the_front_after_a_pause(plan: Plan) -> None:
    fleet = Simulated(plan)
    fleet.start()
    first = fleet.keys[0]
    fleet.see(sv.Answered(first, pid=7), sv.Broke(first, FailureKind.PROCESS_DIED, "", now_s=100.0))
    assert fleet.phase(first) == sv.Waiting(101.0)
    assert fleet.actions[-1] == sv.Tell(events.Restarting(first, FailureKind.PROCESS_DIED, attempt=2))
    assert fleet.fleet.queue[0] == first
    assert sv.next_start(fleet.fleet, TWO_SLOTS, 100.5) == sv.Start(fleet.keys[3], True)  # others do not wait for it
    assert sv.next_start(fleet.fleet, TWO_SLOTS, 101.5) == sv.Start(first, True)
    fleet.see(sv.HandedIn(first))
    assert fleet.told[-1] == (first, ExpertState.RESTARTING)


def test_pauses_double_and_the_last_attempt_gives_up_in_one_sentence(plan: Plan) -> None:
    fleet, pauses = Simulated(plan, max_attempts=9), []
    key = fleet.keys[0]
    while not fleet.fleet.failed:
        fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.PROCESS_DIED, "killed", now_s=0.0))
        if isinstance(waiting := fleet.phase(key), sv.Waiting):
            pauses.append(waiting.not_before_s)
    assert pauses == [min(MAX_DELAY_S, 2.0**index) for index in range(8)]
    assert fleet.fleet.failed[key].startswith(
        f"{plan.by_key[key].name} failed after 9 attempts: its process died (killed)"
    )
    assert sv.Release(key) in fleet.actions
    assert fleet.told[-1] == (key, ExpertState.FAILED)


def test_an_error_of_its_own_would_come_back(plan: Plan) -> None:
    fleet = Simulated(plan)
    key = fleet.keys[0]
    fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.RAISED, "the loss became nan", now_s=0.0))
    assert "failed after 1 attempt: the loss became nan" in fleet.fleet.failed[key]


def test_lost_nodes_cost_no_attempt(plan: Plan) -> None:
    fleet = Simulated(plan, max_attempts=2)
    key = fleet.keys[0]
    for _ in range(10):
        fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.NODE_LOST, "", now_s=5.0))
        assert fleet.phase(key) == sv.Waiting(5.0)
    fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.PROCESS_DIED, "", now_s=5.0))
    assert not fleet.fleet.failed


def test_a_vanished_process_is_judged_when_its_node_is(plan: Plan) -> None:
    """When a node dies, the connection breaks at once and Ray knows of the node some 12 s later."""
    fleet = Simulated(plan, max_attempts=1)
    lost, alone = fleet.keys[:2]
    fleet.see(sv.HandedIn(lost), sv.HandedIn(alone), sv.Answered(lost, pid=1), sv.Answered(alone, pid=2))
    fleet.see(sv.Vanished(lost, "a", now_s=0.0), sv.Vanished(alone, "b", now_s=0.0))
    assert sv.verdicts(fleet.fleet, set(), now_s=5.0) == []
    assert lost not in fleet.fleet.queue
    (seen,) = sv.verdicts(fleet.fleet, {"a"}, now_s=12.0)
    assert (seen.key, seen.kind) == (lost, FailureKind.NODE_LOST)
    fleet.see(seen)
    assert fleet.actions[-1] == sv.Tell(events.Restarting(lost, FailureKind.NODE_LOST, attempt=1))
    (seen,) = sv.verdicts(fleet.fleet, {"a"}, now_s=sv.NODE_VERDICT_S + 1)
    assert (seen.key, seen.kind) == (alone, FailureKind.PROCESS_DIED)  # its node still lives, so it is the process
    fleet.see(seen)
    assert alone in fleet.fleet.failed


def test_a_preempted_node_costs_no_attempt_and_too_little_memory_does(plan: Plan) -> None:
    fleet = Simulated(plan, max_attempts=1)
    key = fleet.keys[0]
    fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.PREEMPTED, "", now_s=0.0))
    assert not fleet.fleet.failed
    fleet.see(sv.HandedIn(key), sv.Broke(key, FailureKind.OUT_OF_MEMORY, "lower training.batch_size", now_s=0.0))
    assert "ran out of memory (lower training.batch_size)" in fleet.fleet.failed[key]


def test_notice_of_a_preemption_is_used_for_a_checkpoint_and_costs_nothing(plan: Plan) -> None:
    fleet = Simulated(plan, max_attempts=1)
    saved, late, broken = fleet.keys[:3]
    for key in (saved, late, broken):
        fleet.see(sv.HandedIn(key), sv.Answered(key, pid=1), sv.Noticed(key))
        assert fleet.actions[-1] == sv.AskToStop(key)
    fleet.see(sv.StoppedOnRequest(saved, now_s=7.0))
    assert fleet.phase(saved) == sv.Waiting(7.0)
    assert fleet.actions[-1] == sv.Tell(events.Restarting(saved, FailureKind.PREEMPTED, attempt=1))
    fleet.see(sv.Broke(late, FailureKind.PROCESS_DIED, "", now_s=8.0))  # before its checkpoint was written
    assert fleet.phase(late) == sv.Waiting(8.0)
    fleet.see(sv.Broke(broken, FailureKind.RAISED, "the loss became nan", now_s=8.0))
    assert broken in fleet.fleet.failed
    fleet.see(sv.HandedIn(saved), sv.Answered(saved, pid=1), sv.StoppedOnRequest(saved, now_s=9.0))
    assert saved in fleet.fleet.stopped  # nobody had said that its node is to go


def test_what_no_node_has_is_named_once_and_waited_for_so_long(plan: Plan) -> None:
    fleet = Simulated(plan)
    fleet.fleet = dataclasses.replace(fleet.fleet, wait_timeout_s=100.0)
    fleet.see(sv.HandedIn(fleet.keys[0]), sv.Answered(fleet.keys[0], pid=1), sv.HandedIn(fleet.keys[1], is_ahead=True))
    small = [{"CPU": 0.5}]
    for now_s in (0.0, 50.0, 99.0):
        fleet.take(sv.check_places(fleet.fleet, small, now_s))
    said = [one.event for one in fleet.actions if isinstance(one, sv.Tell) and isinstance(one.event, events.WaitingFor)]
    assert [event.key for event in said] == [key for key in plan.by_key if key != fleet.keys[0]]  # that one runs
    assert {event.reason for event in said} == {"execution.resources.num_cpus is 1, but no node has more than 0.5"}
    fleet.take(sv.check_places(fleet.fleet, TWO_SLOTS, now_s=99.5))  # a node joined
    fleet.take(sv.check_places(fleet.fleet, small, now_s=101.0))
    assert not fleet.fleet.failed
    fleet.take(sv.check_places(fleet.fleet, small, now_s=202.0))
    assert set(fleet.fleet.failed) == set(fleet.keys[1:])
    assert "for 100 s (execution.wait_timeout_s)" in fleet.fleet.failed[fleet.keys[2]]
    assert sv.Kill(fleet.keys[1]) in fleet.actions
    assert sv.Kill(fleet.keys[2]) not in fleet.actions


def test_a_silent_process_is_killed_and_its_end_still_collected(plan: Plan) -> None:
    fleet = Simulated(plan)
    key = fleet.keys[0]
    fleet.see(sv.HandedIn(key), sv.Answered(key, pid=1), sv.FellSilent(key))
    assert fleet.actions[-1] == sv.Kill(key)
    assert fleet.phase(key) == sv.Running(is_silent=True)
    fleet.see(sv.Broke(key, FailureKind.NOT_ANSWERING, "no answer for 120 s", now_s=0.0))
    assert isinstance(fleet.phase(key), sv.Waiting)


def test_what_others_train_is_waited_for_and_taken_over(plan: Plan) -> None:
    fleet = Simulated(plan)
    first, second = fleet.keys[:2]
    fleet.see(sv.Refused(first), sv.Refused(second))
    assert fleet.fleet.those(sv.Elsewhere) == sorted([first, second], key=list(plan.by_key).index)
    fleet.see(sv.LetGo(first), sv.Found(second))
    assert fleet.fleet.queue[0] == first
    assert fleet.told[-1] == (second, ExpertState.REUSED)
    assert not fleet.fleet.failed
    assert not fleet.fleet.stopped


def test_a_free_process_takes_over_what_has_none(plan: Plan) -> None:
    """Those ahead first; then one that fits but has not come to its place, for Ray started another before it."""
    fleet = Simulated(plan)
    first, second, ahead = (start.key for start in fleet.start())
    assert sv.heirs(fleet.fleet) == [ahead, first, second]
    fleet.see(sv.Answered(first, pid=1), sv.Answered(ahead, pid=2))
    assert sv.heirs(fleet.fleet) == [second]
    before = len(fleet.actions)
    fleet.see(sv.HandedIn(second, is_takeover=True))
    assert fleet.fleet.phases[second] == sv.Submitted(is_ahead=False, has_process=True)
    assert fleet.fleet.attempts[second] == 1
    assert len(fleet.actions) == before
    assert sv.heirs(fleet.fleet) == []  # it is training by now, though it has not answered


def test_a_stop_asks_those_that_train_and_ends_the_others(plan: Plan) -> None:
    fleet = Simulated(plan)
    fleet.start()
    training, submitted, ahead, waiting = fleet.keys
    fleet.see(sv.Answered(training, pid=1))
    before = len(fleet.actions)
    fleet.take(sv.when_asked_to_stop(fleet.fleet))
    assert set(fleet.actions[before:]) == {
        *(sv.AskToStop(training), sv.Kill(submitted), sv.Kill(ahead)),
        *(sv.Tell(events.Stopped(key)) for key in (submitted, ahead, waiting)),  # or they would run for ever in MLflow
    }
    assert set(fleet.fleet.stopped) == {submitted, ahead, waiting}
    fleet.see(sv.StoppedOnRequest(training))
    assert fleet.told[-1] == (training, ExpertState.STOPPED)
    assert fleet.fleet.is_over


def test_one_that_dies_while_it_stops_counts_as_stopped(plan: Plan) -> None:
    fleet = Simulated(plan)
    fleet.start()
    key = fleet.keys[0]
    fleet.see(sv.Answered(key, pid=1))
    fleet.take(sv.when_asked_to_stop(fleet.fleet))
    fleet.see(sv.Broke(key, FailureKind.PROCESS_DIED, "", now_s=0.0))
    assert not fleet.fleet.is_over
    assert key in sv.when_stop_is_over(fleet.fleet).fleet.stopped


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_everyone_ends_and_slots_are_never_overbooked(plan: Plan, seed: int) -> None:
    """Random lives: each expert ends once, its claim is given back, never more than two and one ahead are with Ray."""
    rng, fleet, now_s = random.Random(seed), Simulated(plan), 0.0
    while not fleet.fleet.is_over:
        now_s += 1.0
        assert now_s < 5000
        if fleet.fleet.queue and rng.random() < 0.1:
            fleet.see(sv.Refused(fleet.fleet.queue[0]))
        fleet.start(now_s=now_s)
        assert len(fleet.fleet.those(sv.Submitted, sv.Running)) <= 2 + num_queued_ahead(2)
        with_ray = fleet.fleet.those(sv.Submitted, sv.Running)
        possible: list[sv.Observation] = [sv.Answered(key, pid=1) for key in fleet.fleet.those(sv.Submitted)]
        possible += [sv.Finished(key) for key in fleet.fleet.those(sv.Running)]
        possible += [sv.Broke(key, rng.choice(list(FailureKind)), "", now_s) for key in with_ray]
        possible += [sv.Vanished(key, rng.choice("ab"), now_s) for key in fleet.fleet.those(sv.Running)]
        possible += sv.verdicts(fleet.fleet, {"a"}, now_s)
        possible += [rng.choice((sv.LetGo, sv.Found))(key) for key in fleet.fleet.those(sv.Elsewhere)]
        if possible:
            fleet.see(rng.choice(possible))
    ended = [(key, state) for key, state in fleet.told if state.has_ended]
    assert sorted(key for key, _ in ended) == sorted(fleet.keys)
    assert sorted(one.key for one in fleet.actions if isinstance(one, sv.Release)) == sorted(fleet.keys)
    assert set(fleet.fleet.failed) == {key for key, state in ended if state is ExpertState.FAILED}


def every_event() -> list[ExpertEvent]:
    record = TrainingRecord(64, 0.5, 100.0, 1e-3, 0.1)
    filled: dict[str, Any] = {
        "key": "k",
        "records": (record,),
        "images_seen": 64,
        "cause": FailureKind.NODE_LOST,
        "pid": 7,
        "node": "10.0.0.3",
        "silent_s": 60.0,
        "attempt": 2,
        "reason": "it was late",
    }
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, ExpertEvent)]
    return [
        kind(**{field.name: filled[field.name] for field in dataclasses.fields(kind) if field.name in filled})
        for kind in kinds
        if kind is not ExpertEvent
    ]


@pytest.mark.parametrize("event", every_event(), ids=lambda event: type(event).__name__)
def test_every_event_survives_pickling_and_leads_to_a_state(event: ExpertEvent) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    assert isinstance(event.state, ExpertState)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.key = "other"  # type: ignore[misc]


def test_every_state_is_reached_by_some_event() -> None:
    assert {event.state for event in every_event()} | {events.Starting("k").state} == set(ExpertState)

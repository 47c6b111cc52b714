"""Where experts and runs stand: folded from events by hand-made clocks, judged from here and from elsewhere."""

from typing import Any

import pytest

from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent, ExpertState
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.policies import FailureKind
from orchestrator.plan.standing import (
    SILENT_AFTER_S,
    DriverState,
    ExpertStanding,
    RunStanding,
    count_states,
    remaining_s,
)
from orchestrator.plan.watchdog import Watchdog
from workloads.config import DataSpec, RunConfig
from workloads.training.records import TrainingRecord

DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


def told(expert: ExpertStanding, *moments: tuple[float, ExpertEvent]) -> ExpertStanding:
    for now_s, event in moments:
        expert = expert.after(event, now_s)
    return expert


def progressed(images_seen: int, images_per_s: float = 32.0) -> events.Progressed:
    return events.Progressed("k", (TrainingRecord(images_seen, 0.25, images_per_s, 1e-3, 0.0),))


def test_an_expert_is_what_its_events_say(plan: Plan) -> None:
    expert = told(
        ExpertStanding.of(plan.jobs[1]),
        (100.0, events.Queued("k")),
        (110.0, events.Starting("k")),
        (120.0, events.Training("k", pid=7, node="10.0.0.3")),
        (130.0, progressed(512)),
    )
    assert (expert.name, str(expert.interval), expert.total_images) == ("expert_01", "[250, 500)", 1024)
    assert (expert.state, expert.node, expert.pid) == (ExpertState.TRAINING, "10.0.0.3", 7)
    assert (expert.images_seen, expert.loss, expert.remaining_s) == (512, 0.25, 16.0)
    assert expert.after(progressed(1030), 140.0).images_seen == 1024  # the last batch goes beyond the budget
    done = expert.after(events.Done("k"), 150.0)
    assert (done.images_seen, done.remaining_s, done.goodput(999.0)) == (1024, None, 1.0)


def test_who_gives_no_sign_of_life_says_so_until_it_does(plan: Plan) -> None:
    silent = told(
        ExpertStanding.of(plan.jobs[0]),
        (0.0, events.Training("k", pid=1, node="10.0.0.3")),
        (90.0, events.NoSignOfLife("k", 90.0, "10.0.0.3")),
    )
    assert (silent.state, silent.detail, silent.node) == (ExpertState.TRAINING, "no sign of life for 90 s", "10.0.0.3")
    assert silent.after(progressed(64), 95.0).detail == ""


def test_the_watchdog_names_each_once_until_its_next_sign() -> None:
    dog = Watchdog(10.0)
    dog.saw("a", 0, 0.0, "10.0.0.1")
    dog.saw("b", 0, 5.0)
    dog.saw("a", 0, 9.0, "10.0.0.1")  # it answers, and makes no steps
    assert dog.overdue(10.0) == []
    assert dog.overdue(11.0) == [events.NoSignOfLife("a", 11.0, "10.0.0.1")]
    assert dog.overdue(16.0) == [events.NoSignOfLife("b", 11.0)]
    dog.saw("a", 1, 17.0, "10.0.0.1")
    dog.forget("b")
    assert dog.overdue(27.0) == []
    assert [event.key for event in dog.overdue(30.0)] == ["a"]


def test_what_a_restart_costs_counts_from_the_last_checkpoint_until_it_trains_again(plan: Plan) -> None:
    expert = told(
        ExpertStanding.of(plan.jobs[0]),
        (0.0, events.Starting("k")),
        (10.0, events.Training("k", pid=1)),
        (40.0, events.Checkpointed("k", 64)),
        (50.0, events.Restarting("k", FailureKind.NODE_LOST, 1)),  # 10 s of training gone
        (55.0, events.Starting("k", attempt=1)),
        (70.0, events.Training("k", pid=2)),  # and 20 s without any
        (75.0, events.Restarting("k", FailureKind.PROCESS_DIED, 2)),  # no checkpoint since it began again
        (80.0, events.Training("k", pid=3)),
        (100.0, events.Done("k")),
    )
    assert [(restart.cause, restart.lost_s) for restart in expert.restarts] == [
        (FailureKind.NODE_LOST, 30.0),
        (FailureKind.PROCESS_DIED, 10.0),
    ]
    assert expert.lost_s == 40.0
    assert expert.goodput(1e9) == pytest.approx(0.6)


def test_what_is_left_is_bound_by_the_slowest_and_by_all_the_work(plan: Plan) -> None:
    quick, slow, waiting = (ExpertStanding.of(plan.jobs[0]).model_copy(update={"macs": 10.0}) for _ in range(3))
    assert remaining_s([quick, waiting]) is None  # nothing trains
    quick = told(quick, (0.0, events.Training("k")), (1.0, progressed(1008, 16.0)))  # a second left
    slow = told(slow, (0.0, events.Training("k")), (1.0, progressed(24, 1.0)))  # 1000 s left
    assert remaining_s([quick, slow]) == 1000.0
    # (16 + 1024) images at 16 a second.
    assert remaining_s([quick, waiting]) == pytest.approx(65.0)
    assert count_states([waiting, slow, quick]) == {ExpertState.QUEUED: 1, ExpertState.TRAINING: 2}


@pytest.mark.parametrize(
    ("here", "is_locked", "age_s", "ended", "expected"),
    [
        ("a", True, 0.0, "", DriverState.RUNS),
        ("a", True, 1e6, "", DriverState.RUNS),  # stopped by a debugger, perhaps; its lock is there
        ("a", False, 0.0, "", DriverState.GONE),  # killed a moment ago
        ("a", None, 1.0, "", DriverState.RUNS),  # a file system without locks
        ("a", None, SILENT_AFTER_S + 1, "", DriverState.SILENT),
        ("b", True, 1e6, "", DriverState.RUNS),  # a lock that is seen from elsewhere is there
        ("b", False, 1.0, "", DriverState.RUNS),  # one that is not may not have been passed on
        ("b", False, SILENT_AFTER_S + 1, "", DriverState.SILENT),
        ("a", False, 1e6, "finished", DriverState.ENDED),
    ],
)
def test_a_driver_is_judged_by_its_lock_and_elsewhere_by_its_last_word(
    here: str, is_locked: bool | None, age_s: float, ended: Any, expected: DriverState
) -> None:
    status = RunStanding(name="r", kind="meme", host="a", pid=1, begun_s=0.0, written_s=1000.0, ended=ended)
    assert status.driver(here=here, is_locked=is_locked, now_s=1000.0 + age_s) is expected


def test_a_status_is_the_same_when_it_is_read_back(plan: Plan) -> None:
    expert = told(
        ExpertStanding.of(plan.jobs[0]),
        (0.0, events.Training("k", pid=1, node="n")),
        (5.0, events.Restarting("k", FailureKind.OUT_OF_MEMORY, 2)),
        (6.0, events.Failed("k", "no memory")),
    )
    status = RunStanding(name="r", kind="meme", host="a", pid=1, begun_s=0.0, written_s=1.0, experts=(expert,))
    assert RunStanding.model_validate_json(status.model_dump_json()) == status

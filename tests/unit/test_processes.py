"""When an actor counts as silent: by what it answered, not by how long those who listen take."""

import types
from typing import Any

import pytest

from orchestrator.execution import processes
from orchestrator.execution.actor import ActorReport
from orchestrator.execution.processes import ExpertProcess, ExpertProcesses, Member
from orchestrator.plan.jobs import make_plan
from workloads.config import DataSpec, RunConfig


class Clockwork:
    """Stands for the part of Ray that polling uses: an answer is there unless its actor is mute."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.mute: set[str] = set()

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        ready = [one for one in references if one not in self.mute]
        return ready, [one for one in references if one in self.mute]

    def get(self, reference: str) -> ActorReport:
        return ActorReport(pid=1, node="h", node_id="n", records=[], checkpoint_images=0, num_steps=0)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    made = Clockwork()
    monkeypatch.setattr(processes, "ray", made)
    monkeypatch.setattr(processes, "time", types.SimpleNamespace(monotonic=lambda: made.now_s))
    return made


@pytest.fixture
def watched(tiny_run: dict[str, Any]) -> ExpertProcesses:
    """Two experts, a and b, whose actors have been submitted."""
    plan = make_plan(RunConfig.model_validate(tiny_run), DataSpec(fingerprint="f", channels=1, image_size=8))
    watched = ExpertProcesses(None, None)  # type: ignore[arg-type]
    for name, job in zip("ab", plan.jobs, strict=False):
        actor = types.SimpleNamespace(poll=types.SimpleNamespace(remote=lambda key, *known, name=name: name))
        watched._by_key[name] = ExpertProcess(job, (Member(actor, done=name),))
    return watched


def test_a_listener_that_stands_still_makes_nobody_silent(clockwork: Clockwork, watched: ExpertProcesses) -> None:
    for _ in range(6):
        heard, silent = watched.poll(timeout_s=120)
        assert silent == []
        clockwork.now_s += 500  # whoever is told of this holds everything up
        assert {key for key, _ in heard} <= {"a", "b"}


def test_who_does_not_answer_what_was_asked_is_silent(clockwork: Clockwork, watched: ExpertProcesses) -> None:
    watched.poll(timeout_s=120)
    assert {key for key, answer in watched.poll(timeout_s=120)[0] if answer.is_first} == {"a", "b"}
    watched.poll(timeout_s=120)  # asked again
    clockwork.mute = {"a"}
    clockwork.now_s += 119
    assert watched.poll(timeout_s=120)[1] == []
    clockwork.now_s += 2
    assert watched.poll(timeout_s=120)[1] == ["a"]


def test_who_never_answered_may_wait_for_a_place(clockwork: Clockwork, watched: ExpertProcesses) -> None:
    clockwork.mute = {"a", "b"}
    for _ in range(5):
        assert watched.poll(timeout_s=120) == ([], [])
        clockwork.now_s += 1000

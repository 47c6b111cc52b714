"""A run as others see it: written by its driver, read from other processes, and true after a SIGKILL."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from waiting import wait_until

from orchestrator.plan import events
from orchestrator.plan.errors import RunStoppedError
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.plan.policies import FailureKind
from orchestrator.plan.standing import DriverState, ExpertStanding
from orchestrator.runs.status import StatusFile, find_run, view_run, view_runs
from orchestrator.search.running.status import WholeStatus, status_here
from orchestrator.search.study.status import progress_words
from orchestrator.search.study.trial import Rung, Trial
from orchestrator.terminal.status import restarts_words, run_lines, workers_words
from workloads.config import DataSpec, RunConfig
from workloads.errors import ConfigError
from workloads.files import write_text
from workloads.locks import is_locked, try_lock
from workloads.places import RunDir
from workloads.training.records import TrainingRecord

DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)

DRIVER = """
import sys, time
from pathlib import Path
from orchestrator.runs.status import StatusFile
from workloads.places import RunDir
with StatusFile(RunDir(Path(sys.argv[1])), "meme") as status:
    status.doing("sampling", 3, 7)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


@pytest.fixture
def start_driver() -> Iterator[Callable[[RunDir], "subprocess.Popen[bytes]"]]:
    started = []

    def start(run: RunDir) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", DRIVER, str(run.path)]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def quick_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.runs.status.WRITE_INTERVAL_S", 0.05)


def text_of(renderable: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_driver_that_is_killed_is_gone_at_once_and_what_it_said_stays(
    start_driver: Callable[[RunDir], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "a-12345678")
    driver = start_driver(run)
    wait_until(lambda: (view := view_run(run)) and view.status.total)
    view = view_run(run)
    assert view is not None
    assert (view.driver, view.status.pid) == (DriverState.RUNS, driver.pid)
    assert "sampling 3 of 7" in text_of(run_lines(view.status, view.driver))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    view = view_run(run)
    assert view is not None
    assert view.driver is DriverState.GONE
    assert re.search(r"driver gone since \d{4}-\d\d-\d\dT[\d:]{8}[+-]\d\d:\d\d", text_of(run_lines(*view[1:])))
    assert [one.status.name for one in view_runs(RunsDir(tmp_path))] == ["a-12345678"]


def test_a_group_is_shown_with_the_workers_it_has_now(plan: Plan) -> None:
    group = dataclasses.replace(plan.jobs[0], num_workers=4, worker_counts=(4, 2))
    expert = ExpertStanding.of(group)
    assert workers_words(expert) == ""
    for num_workers, words in ((4, "4 workers"), (2, "2 of 4 workers")):
        expert = expert.after(events.Starting(group.key, num_workers=num_workers), 0.0)
        assert workers_words(expert) == words


def test_experts_are_shown_with_node_speed_and_what_restarts_cost(plan: Plan, tmp_path: Path) -> None:
    run, key = RunDir(tmp_path / "tiny-00000000"), plan.jobs[2].key
    with StatusFile(run, "meme", plan.jobs) as status:
        status.doing("training")
        for event in (
            events.Starting(key),
            events.Training(key, pid=5, node="10.0.0.7"),
            events.Restarting(key, FailureKind.PROCESS_DIED, 2),
            events.Starting(key, attempt=2),
            events.Training(key, pid=6, node="10.0.0.8"),
            events.Progressed(key, (TrainingRecord(512, 0.5, 64.0, 1e-3, 0.0),)),
        ):
            status(event)
        wait_until(lambda: (view := view_run(run)) and view.status.experts and view.status.experts[2].images_seen)
        view = view_run(run)
        assert view is not None
        text = text_of(run_lines(view.status, view.driver))
    assert "3 queued, 1 training" in text
    (line,) = [line for line in text.splitlines() if "10.0.0.8" in line]
    assert re.search(r"expert_02 +\[500, 750\) +training +10.0.0.8 +512 +50% +0.5000 +64 +0:08 +1 x its process", line)
    assert restarts_words(view.status.experts[2]) == "1 x its process died (0:00 lost)"
    assert json.loads(run.status.read_text())["ended"] == "finished"
    assert not is_locked(run.driver_lock)


@pytest.mark.parametrize(
    ("error", "ended", "reason"),
    [
        (RunStoppedError("stopped"), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (ConfigError("this is\nwrong"), "failed", "this is"),
    ],
)
def test_how_a_run_ended_is_kept(error: BaseException, ended: str, reason: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    with pytest.raises(type(error)), StatusFile(run, "meme"):
        raise error
    view = view_run(run)
    assert view is not None
    assert (view.driver, view.status.ended, view.status.reason) == (DriverState.ENDED, ended, reason)


def test_the_second_driver_of_a_run_writes_when_the_first_is_gone(
    start_driver: Callable[[RunDir], "subprocess.Popen[bytes]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runs.status.LIFE_INTERVAL_S", 0.05)
    run = RunDir(tmp_path / "x")
    first = start_driver(run)
    wait_until(lambda: view_run(run))
    with StatusFile(run, "meme"):
        time.sleep(0.3)
        assert (view := view_run(run))
        assert view.status.pid == first.pid
        first.kill()
        first.wait()
        wait_until(lambda: (view := view_run(run)) and view.status.pid == os.getpid())


def test_what_cannot_be_written_stops_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path / "x")
    run.status.mkdir(parents=True)  # a file cannot take its place
    with StatusFile(run, "meme") as status:
        for number in range(5):
            status.doing("training", number, 5)
            time.sleep(0.1)
    assert len(caplog.records) == 1
    assert "the status of the run cannot be written" in caplog.text


def test_runs_are_found_by_name_directory_and_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RunsDir(tmp_path)
    given = {"metadata": {"job_submission_id": "train-0001"}}
    for name, job in (("demo-11111111", "{}"), ("demo-22222222", json.dumps(given))):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
        with StatusFile(RunDir(tmp_path / name), "meme"):
            pass
    assert find_run("demo-11111111", runs).status.name == "demo-11111111"
    assert find_run("demo", runs).status.name == "demo-22222222"  # the last begun
    assert find_run("train-0001", runs).status.name == "demo-22222222"
    assert find_run(str(tmp_path / "demo-11111111"), RunsDir(tmp_path / "elsewhere")).status.job is None
    with pytest.raises(ConfigError, match=r"no run, study or job 'other' under .*; the latest there: demo-22222222, "):
        find_run("other", runs)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"name": "x"}', '{"name": 1e999}', "\x00"])
def test_a_damaged_status_is_named(content: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    write_text(run.status, content)
    with pytest.raises(ConfigError, match=r"status.json cannot be read: it is damaged"):
        view_run(run)
    assert view_runs(RunsDir(tmp_path)) == []


def test_a_study_shows_its_configurations(tmp_path: Path) -> None:
    study = RunsDir(tmp_path).study("ratios")
    values = {"strategy.experts.0.model.attention_share": ["1/4"], "strategy.experts.1.model.attention_share": ["3/4"]}
    done = Trial(number=0, values=values, state="finished", rungs=(Rung(name="loss", value=0.125),))
    going_on = Trial(number=1, values=values)
    with StatusFile(RunDir(study.path), "study"):
        for trial in (done, going_on):
            write_text(study.trial_file(trial.number), trial.model_dump_json())
        write_text(study.trial_file(2), "{torn")
        write_text(study.progress_file(1), "training 43%")
    found = status_here("ratios", RunsDir(tmp_path))
    assert [(one.state, one.doing, one.scores) for one in found.configurations] == [
        ("finished", "", {"held_out_loss": 0.125}),
        ("running", "training 43%", {}),
    ]
    assert found.configurations[0].varied == {"attention_share": "[1/4]  [3/4]"}
    text = text_of(found.show())
    assert re.search(r"0 +finished +\[1/4\]  \[3/4\] +0.125", text)
    assert WholeStatus.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("content", [b"\xff\xfe", b"training 4\x1b[31m3%", b"x" * 10**6, b"", b"training 43"])
def test_damaged_words_of_a_configuration_are_not_shown(content: bytes, tmp_path: Path) -> None:
    """Torn, not text, or what a terminal would obey: nothing depends on them, and they are replaced soon."""
    study = RunsDir(tmp_path).study("s")
    write_text(study.progress_file(1), "training on another node 43%")
    assert progress_words(study, 1) == "training on another node 43%"
    study.progress_file(1).write_bytes(content)
    assert progress_words(study, 1) == progress_words(study, 2) == ""


def test_looking_at_a_lock_takes_and_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert is_locked(file) is False
    assert not file.exists()
    lock = try_lock(file)
    assert lock is not None
    assert is_locked(file) is True
    lock.release()
    assert is_locked(file) is False
    shutil.rmtree(tmp_path)

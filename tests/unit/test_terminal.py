"""Events in words: the lines of a job's log, and warnings as notes."""

import io
import logging
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console
from waiting import wait_until

from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.policies import FailureKind
from orchestrator.terminal.experts import ExpertsDisplay
from orchestrator.terminal.notes import show_warnings_as_notes
from orchestrator.terminal.progress import progress
from orchestrator.terminal.tables import print_plan
from orchestrator.terminal.words import timestamp
from workloads.config import DataSpec, RunConfig
from workloads.training.records import TrainingRecord

DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


def record(images_seen: int) -> TrainingRecord:
    return TrainingRecord(images_seen, 0.25, 64.0, 1e-3, 0.0)


def unstamped(log: io.StringIO) -> list[str]:
    """The lines of a log without their times, which are those of now."""
    lines = [line.partition(" ") for line in log.getvalue().splitlines()]
    for moment, _, _ in lines:
        assert abs(datetime.fromisoformat(moment) - datetime.now(UTC)) < timedelta(seconds=60)
    return [text for _, _, text in lines]


def test_a_time_is_local_and_says_how_far_it_is_from_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert timestamp(0.0) == "1970-01-01T05:30:00+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (events.Queued("k"), "queued"),
        (events.Reused("k"), "reused"),
        (events.TrainedElsewhere("k"), "elsewhere (another command trains it; it is waited for)"),
        (events.Starting("k"), "starting"),
        (events.Starting("k", num_workers=2), "starting (2 workers)"),
        (events.Training("k", pid=7), "training (pid 7)"),
        (events.Training("k", pid=7, node="10.0.0.3"), "training (pid 7 on 10.0.0.3)"),
        (events.Training("k"), "training"),
        (events.NoSignOfLife("k", 61.0, "10.0.0.3"), "training (no sign of life for 1:01 on node 10.0.0.3)"),
        (events.Restarting("k", FailureKind.PROCESS_DIED, 2), "restarting (its process died)"),
        (events.Starting("k", attempt=2), "restarting"),
        (events.Done("k"), "done"),
        (events.Failed("k", "the loss became nan"), "failed (the loss became nan)"),
        (events.Stopped("k"), "stopped"),
        (events.Checkpointed("k", 64), None),
    ],
)
def test_an_event_is_a_line_of_the_log(plan: Plan, event: ExpertEvent, words: str | None) -> None:
    job, log = plan.jobs[1], io.StringIO()
    with ExpertsDisplay(plan.jobs, Console(file=log)) as display:
        display(type(event)(**{**vars(event), "key": job.key}))
    assert unstamped(log) == ([] if words is None else [f"expert_01 [250, 500): {words}"])


def test_progress_is_told_now_and_then_with_what_is_left(plan: Plan) -> None:
    job, log = plan.jobs[0], io.StringIO()
    display = ExpertsDisplay(plan.jobs, Console(file=log))
    for images_seen in (64, 128, 192, 1024):  # within the same moment
        display(events.Progressed(job.key, (record(images_seen),)))
    assert unstamped(log) == [
        "expert_00: 64 of 1,024 images, loss 0.2500, 64 images/s, 0:15 left",
        "expert_00: 1,024 of 1,024 images, loss 0.2500, 64 images/s; its loss by timestep is measured",
    ]


def test_who_waits_is_told_what_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.terminal.experts.SILENCE_S", 0.05)
    log = io.StringIO()
    waiting = "1 of 4 ended; expert_01 elsewhere, expert_02 queued, expert_03 queued"
    with ExpertsDisplay(plan.jobs, Console(file=log)) as display:
        display(events.Done(plan.jobs[0].key))
        display(events.TrainedElsewhere(plan.jobs[1].key))
        wait_until(lambda: log.getvalue().count(waiting) > 1, log.getvalue)
    said = log.getvalue()
    time.sleep(0.2)
    assert log.getvalue() == said


def test_long_work_is_told_now_and_then_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line for what is done at once; then one soon and one per interval, with what is left at the speed so far."""
    now_s, log = [100.0], io.StringIO()
    monkeypatch.setattr("orchestrator.terminal.progress.time.monotonic", lambda: now_s[0])
    with progress("sampling", "images", console=Console(file=log)) as advance:
        for done in range(100, 1000, 100):  # the first hundred were there already
            advance(done, 1000)
            now_s[0] += 4.0
    lines = [line for line in log.getvalue().splitlines(keepends=True) if "left" in line]
    assert unstamped(io.StringIO("".join(lines))) == [
        "sampling: 200 of 1,000 images, 0:32 left",
        "sampling: 500 of 1,000 images, 0:20 left",
        "sampling: 800 of 1,000 images, 0:08 left",
    ]
    assert log.getvalue().splitlines()[-1].endswith("sampling: 900 of 1,000 images, took 0:36")
    with progress("scoring", "images", console=Console(file=log)) as advance:
        for done in (0, 1000):  # the end long after the last line: told once, with what it took
            advance(done, 1000)
            now_s[0] += 30.0
    scored = [line.partition(" ")[2] for line in log.getvalue().splitlines() if "scoring" in line]
    assert scored == ["scoring: 1,000 of 1,000 images, took 1:00"]


def test_a_log_hears_of_work_whose_first_part_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and again after a silence; nothing is said of what is not begun, nor after the end."""
    for name, seconds in {"FIRST_AFTER_S": 0.02, "PLAIN_INTERVAL_S": 0.05, "SILENCE_S": 0.1}.items():
        monkeypatch.setattr(f"orchestrator.terminal.progress.{name}", seconds)
    log = io.StringIO()
    with progress("sampling", "images", console=Console(file=log)) as advance:
        time.sleep(0.1)
        assert not log.getvalue()
        advance(0, 64)
        wait_until(lambda: len(unstamped(log)) > 1)
        advance(64, 64)
    *before, last = unstamped(log)
    assert set(before) == {"sampling: 0 of 64 images"}
    assert last == "sampling: 64 of 64 images, took 0:00"


@pytest.mark.parametrize("total", [2, 120])
def test_the_last_line_of_a_log_says_how_far_it_came(total: int) -> None:
    """Done within a moment, and at once after a line that said less: no reader is left with 64 of 120."""
    log = io.StringIO()
    with progress("sampling", "images", console=Console(file=log)) as advance:
        for done in range(total // 2, total + 1, total // 2):
            advance(done, total)
    assert unstamped(log) == [f"sampling: {total} of {total} images, took 0:00"]
    with progress("sampling", "images", console=Console(file=log)):
        pass
    assert len(log.getvalue().splitlines()) == 1


@pytest.mark.parametrize("command", ["train demo-meme", "search demo-search", "sample x", "data prepare x y"])
def test_the_first_word_comes_before_anything_slow_is_loaded(command: str) -> None:
    program = f"""
import sys
from orchestrator.terminal import notes
def spy(text, *_, **__):
    print(text, sorted({{"torch", "ray", "numpy", "mlflow", "fsspec"}} & set(sys.modules)))
    sys.exit(0)
notes.print_note = spy
sys.argv = ["rememe", *{command.split()!r}]
from orchestrator.cli.app import main
main()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.endswith(": loading what that needs []\n"), said.stderr


def test_warnings_of_ours_are_notes_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings_as_notes()
    show_warnings_as_notes()
    logging.getLogger("orchestrator.search.study.ledger").warning("%s is damaged", "0007.json")
    logging.getLogger("somebody.else").warning("not ours")
    assert capsys.readouterr().err == "note: 0007.json is damaged\n"


def test_a_narrow_terminal_cuts_no_number_off(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table that is redrawn breaks words; of others the terminal itself breaks the lines."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    job, drawn = plan.jobs[0], io.StringIO()
    with ExpertsDisplay(plan.jobs, Console(file=drawn, force_terminal=True)) as display:
        display(events.NoSignOfLife(job.key, 61.0, "node-0123456789.example"))
        display(events.Progressed(job.key, (TrainingRecord(1024, 0.25, 12345.0, 1e-3, 0.0),)))
    last = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", drawn.getvalue())
    assert all(words in last for words in ("expert_00", "[0, 250)", "1,024", "0.2500", "12345"))
    assert all(len(line) <= 80 for line in last.splitlines())
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", drawn.getvalue())
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    print_plan(plan)
    assert all(words in printed.getvalue() for job in plan.jobs for words in (job.name, str(job.interval), job.key))

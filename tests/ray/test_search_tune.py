"""Ray Tune carries out what is asked; the score is a plain function."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from orchestrator.search.running.tune import ReportTrial, run_trials
from orchestrator.search.study.options import EarlyStop
from orchestrator.search.study.trial import Rung, Trial

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a test
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


class Loss:
    """Loss of configuration i at a quarter, half and all of the training; leaves a trace of every start."""

    def __init__(self, folder: Path, *, kill_once: int | None = None, raise_at: int | None = None) -> None:
        self.folder, self.kill_once, self.raise_at = folder, kill_once, raise_at

    def __call__(self, trial: Trial, report: ReportTrial) -> Trial:
        starts = self.folder / f"{trial.number}.starts"
        starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
        (self.folder / f"{trial.number}.cwd").write_text(str(Path.cwd()))
        if trial.number == self.raise_at:
            raise RuntimeError("nobody expected this")
        for share in (0.25, 0.5, 1.0):
            loss = trial.values["loss"] / share
            name = "loss" if share == 1 else f"loss@{share:g}"
            trial = trial.model_copy(update={"rungs": (*trial.rungs, Rung(name=name, value=loss))})
            report(trial, share, loss)
            if trial.number == self.kill_once and starts.read_text() == "x":
                os.kill(os.getpid(), signal.SIGKILL)
        return trial.model_copy(update={"state": "finished"})


class Desk:
    """Asks for a few configurations and keeps what it is told."""

    def __init__(self, losses: list[float]) -> None:
        self._waiting = [Trial(number=number, values={"loss": loss}) for number, loss in enumerate(losses)]
        self.told: list[Trial] = []

    def ask(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)

    @property
    def ends(self) -> dict[int, str]:
        ends = [(trial.number, trial.state) for trial in self.told if trial.state != "running"]
        assert len(dict(ends)) == len(ends), "an end was told twice"
        return dict(ends)


@pytest.fixture
def carry_out(tmp_path: Path) -> Callable[..., Desk]:
    def run(losses: list[float], run: Loss, early_stop: EarlyStop | None = None) -> Desk:
        desk = Desk(losses)
        options = {"state_dir": tmp_path / "tune", "max_concurrent": 1, "early_stop": early_stop, "first_percent": 25}
        run_trials(desk.ask, run, desk.tell, **options)  # type: ignore[arg-type]
        return desk

    return run


def test_every_configuration_is_run_and_told_once(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    desk = carry_out([3.0, 1.0, 2.0], Loss(tmp_path))
    assert desk.ends == dict.fromkeys(range(3), "finished")
    last = {trial.number: trial for trial in desk.told}
    assert [last[number].rungs[-1].value for number in range(3)] == [3.0, 1.0, 2.0]
    assert len([trial for trial in desk.told if trial.state == "running"]) == 9


def test_relative_paths_are_the_commands(
    tmp_path: Path, carry_out: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is used again is where the command is, not where the last one or Tune was."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    carry_out([1.0, 2.0], Loss(tmp_path))
    assert {file.read_text() for file in tmp_path.glob("*.cwd")} == {str(tmp_path / "elsewhere")}


def test_asha_stops_what_is_behind(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    """One after the other with rising loss: the first is the best of one, later ones are never in the best third."""
    desk = carry_out([1.0, 2.0, 3.0, 4.0], Loss(tmp_path), EarlyStop(kind="asha"))
    assert desk.ends[0] == "finished"
    assert [desk.ends[number] for number in (1, 2, 3)] == ["stopped"] * 3
    stopped = next(trial for trial in desk.told if trial.state == "stopped")
    assert [rung.name for rung in stopped.rungs] == ["loss@0.25"]


def test_the_median_rule_stops_what_is_above_it(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    rule = EarlyStop(kind="median", min_configurations=3)
    desk = carry_out([1.0, 2.0, 3.0, 9.0, 0.5], Loss(tmp_path), rule)
    assert desk.ends == {0: "finished", 1: "finished", 2: "finished", 3: "stopped", 4: "finished"}


def test_a_killed_process_is_started_again(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    desk = carry_out([1.0, 2.0], Loss(tmp_path, kill_once=0))
    assert desk.ends == {0: "finished", 1: "finished"}
    assert (tmp_path / "0.starts").read_text() == "xx"


def test_an_error_nobody_expected_is_told_in_a_sentence(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    desk = carry_out([1.0, 2.0], Loss(tmp_path, raise_at=0))
    assert desk.ends == {0: "failed", 1: "finished"}
    failed = next(trial for trial in desk.told if trial.state == "failed")
    assert "nobody expected this" in failed.error
    assert "\n" not in failed.error


def test_nothing_of_tunes_state_is_needed(tmp_path: Path, carry_out: Callable[..., Desk]) -> None:
    """A truncated state file of an earlier call does not matter."""
    carry_out([1.0], Loss(tmp_path))
    for file in (tmp_path / "tune").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    desk = carry_out([2.0], Loss(tmp_path))
    assert desk.ends == {0: "finished"}
    assert json.loads(desk.told[-1].model_dump_json())["rungs"][-1]["value"] == 2.0

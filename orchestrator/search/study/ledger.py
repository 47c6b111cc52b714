"""What a study knows of itself on disk: its description and one file per configuration, each written in one step.

runs/studies/NAME/
  study.json        what the study is; a later call must describe the same
  trials/0007.json  one configuration: its point of the space, how far it came, what it scored, what it cost
  tune/             Ray Tune's own state; thrown away at every start, nothing depends on it
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from orchestrator.plan.places import RunsDir
from orchestrator.search.space.points import Values
from orchestrator.search.study.options import BRIEF, FULL, LOSS
from orchestrator.terminal.view import print_note
from workloads.config import Interval
from workloads.config.base import StrictConfig
from workloads.errors import ConfigError
from workloads.files import write_text

MAX_CHANGES = 3
"""Named in an error message."""

State = Literal["running", "interrupted", "finished", "stopped", "failed"]
"""running, interrupted: begun, and to be gone on with; stopped: given up early because others were better."""


class Rung(StrictConfig):
    """One score of a configuration. Rungs rise in cost: held-out loss (perhaps after brief training), quick, full."""

    name: str
    """loss@0.25 (after a quarter of the training), loss, quick or full."""

    value: float
    """Lower is better."""

    stderr: float | None = None
    """Standard error, where it was measured."""

    score_name: str = "held_out_loss"
    protocol_hash: str = ""
    """Of the score's protocol; empty for a loss."""

    num_samples: int = 0
    """Generated images behind it."""

    elapsed_s: float = 0.0
    """What measuring took, training left out."""


class UsedJob(StrictConfig):
    """A network that a configuration contains."""

    key: str
    name: str
    interval: Interval
    architecture: str
    """Hash of the model's description: equal for equal architectures."""

    label: str
    """What tells the architecture from others of the study, for people."""

    images: int
    num_parameters: int
    macs: int
    latency_s: float | None = None
    """Of one call for one image; None if not measured."""

    trained: bool
    """False if it was there already, or was trained for another configuration meanwhile."""

    brief: bool = False
    """Trained with a part of the budget for an early rung only."""


class Trial(StrictConfig):
    """One configuration of a study."""

    number: int
    values: Values
    draws: dict[str, Any] = Field(default_factory=dict)
    """What a model-based sampler drew."""

    state: State = "running"
    origin: Literal["sampler", "planner"] = "sampler"
    runs: tuple[str, ...] = ()
    """Names of the run directories, one per seed."""

    predicted_loss: float | None = None
    """Held-out loss the planner expected."""

    grown_from: int | None = None
    """Number of the configuration whose trained remix this one starts from."""

    growth: Values = Field(default_factory=dict)
    """What growing changes of the configuration at its point."""

    rungs: tuple[Rung, ...] = ()
    jobs: tuple[UsedJob, ...] = ()
    num_parameters: int = 0
    """Stored parameters of all networks together."""

    macs: float = 0.0
    """Multiply-adds of a denoising step, averaged over timesteps."""

    latency_s: float | None = None
    """Of one call for one image, averaged over timesteps; None if not measured."""

    error: str = ""
    elapsed_s: float = 0.0

    def rung(self, name: str) -> Rung | None:
        """The rung of that name, if it was reached."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    @property
    def described(self) -> Values:
        """What the base becomes the configuration with: its point, and what growing changes."""
        return self.values | self.growth

    @property
    def images_trained(self) -> int:
        """Training images this configuration added."""
        return sum(job.images for job in self.jobs if job.trained)

    @property
    def images_reused(self) -> int:
        """Training images it had for nothing."""
        return sum(job.images for job in self.jobs if not job.trained)


class Ledger:
    """The directory of one study."""

    def __init__(self, runs: RunsDir, name: str) -> None:
        self.name = name
        self.path = runs.studies / name
        self.tune_dir = self.path / "tune"

    @property
    def stop_file(self) -> Path:
        """Its presence asks running configurations to write checkpoints and end."""
        return self.path / "stop"

    def description(self) -> dict[str, Any] | None:
        """What the study was when it began; None if it has not."""
        file = self.path / "study.json"
        try:
            described: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise ConfigError(f"{file} is damaged; remove it and run the same command again") from None
        return described

    def require_same(self, described: Mapping[str, Any]) -> None:
        """Raise ConfigError that says what changed, unless the study on disk is this one (or there is none)."""
        known = self.description()
        if known is None:
            return
        before, now = _flatten(known), _flatten(described)
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if not changed:
            return
        listed = [f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in changed[:MAX_CHANGES]]
        if len(changed) > MAX_CHANGES:
            listed.append(f"and {len(changed) - MAX_CHANGES} more")
        raise ConfigError(
            f"study {self.name} was begun with another description: {'; '.join(listed)}. "
            f"Scores of both cannot share a table; go on under a new name: name={self._new_name()} "
            "(experts that did not change are reused)"
        )

    def begin(self, described: Mapping[str, Any]) -> None:
        """Keep the description, and forget what Tune kept of an earlier call."""
        write_text(self.path / "study.json", json.dumps(described, indent=2))
        shutil.rmtree(self.tune_dir, ignore_errors=True)
        self.stop_file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time runs a study. ConfigError that names the other one; a dead one's lock is free."""
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / "owner.txt"
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            raise ConfigError(
                f"study {self.name} is being run by {who}; wait for it, stop it, or give this one a name"
            ) from None
        try:
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def trials(self) -> list[Trial]:
        """Every configuration so far, in order. A damaged file is named, set aside, and its point drawn again."""
        found = []
        for file in sorted((self.path / "trials").glob("[0-9]*.json")):
            try:
                found.append(Trial.model_validate_json(file.read_text()))
            except (ValidationError, UnicodeDecodeError):
                aside = file.with_suffix(".damaged")
                file.replace(aside)
                print_note(f"{file} is damaged and was moved to {aside.name}; what was trained for it is reused")
        return found

    def write(self, trial: Trial) -> None:
        """Replace the configuration's file in one step."""
        write_text(self.file(trial.number), trial.model_dump_json(indent=2))

    def file(self, number: int) -> Path:
        """Where a configuration is kept."""
        return self.path / "trials" / f"{number:04d}.json"

    def _new_name(self) -> str:
        number = 2
        while (self.path.parent / f"{self.name}-{number}").exists():
            number += 1
        return f"{self.name}-{number}"


def list_studies(runs: RunsDir) -> list[str]:
    """Names of the studies that have begun."""
    return sorted(file.parent.name for file in runs.studies.glob("*/study.json"))


def open_ledger(runs: RunsDir, name: str) -> Ledger:
    """The ledger of a study that has begun. ConfigError that lists those there are."""
    ledger = Ledger(runs, name)
    if ledger.description() is None:
        known = list_studies(runs)
        have = f"studies there: {', '.join(known)}" if known else f"none has been run; try: rememe search {name}"
        raise ConfigError(f"no study {name!r} under {runs.path}; {have}")
    return ledger


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping) and node:
        parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: node}


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def reached(trials: Sequence[Trial], rung: str) -> list[Trial]:
    """Those that have a score on that rung, best first."""
    return sorted((trial for trial in trials if trial.rung(rung)), key=lambda trial: _value(trial, rung))


def _value(trial: Trial, rung: str) -> float:
    found = trial.rung(rung)
    assert found is not None
    return found.value


def ranked(trials: Sequence[Trial], rungs: Sequence[str]) -> list[Trial]:
    """Best first: by the dearest rung a configuration has, those with a dearer one in front."""
    best: list[Trial] = []
    for name in reversed(rungs):
        best += [trial for trial in reached(trials, name) if trial not in best]
    return best


def metric_name(rung: Rung) -> str:
    """One name per rung in all of MLflow: held_out_loss_0.25, held_out_loss, fid_quick, fid."""
    if rung.name.startswith(BRIEF):
        return f"held_out_loss_{rung.name.removeprefix(BRIEF)}"
    if rung.name == LOSS:
        return "held_out_loss"
    return rung.score_name if rung.name == FULL else f"{rung.score_name}_{rung.name}"

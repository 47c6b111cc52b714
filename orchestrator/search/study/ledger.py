"""What a study knows of itself on disk: its description and one file per configuration, each written in one step.

Where its files lie is said by StudyDir in orchestrator/plan/places.py; what is in one is Trial in trial.py.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.plan.places import RunsDir
from orchestrator.search.study.trial import Trial
from workloads.errors import ConfigError, DamagedFileError
from workloads.files import write_text
from workloads.locks import try_lock
from workloads.sealed import read_json, write_json

logger = logging.getLogger(__name__)

MAX_CHANGES = 3
"""Named in an error message."""


class Ledger:
    """The directory of one study."""

    def __init__(self, runs: RunsDir, name: str) -> None:
        self.name = name
        self.dir = runs.study(name)
        self._runs = runs

    def description(self) -> dict[str, Any] | None:
        """What the study was when it began; None if it has not."""
        file = self.dir.description_file
        if not file.exists():
            if self.dir.trial_files():
                # Their scores might be another study's.
                raise ConfigError(f"{file} is missing, and configurations are there; {self._way_out()}")
            return None
        return read_json(file, dict, self._way_out())

    def require_same(self, description: Mapping[str, Any]) -> None:
        """Raise ConfigError that says what changed, unless the study on disk is this one (or there is none)."""
        known = self.description()
        if known is None:
            return
        before, now = _flatten(known), _flatten(description)
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if not changed:
            return
        listed = [f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in changed[:MAX_CHANGES]]
        if len(changed) > MAX_CHANGES:
            listed.append(f"and {len(changed) - MAX_CHANGES} more")
        raise ConfigError(
            f"study {self.name} was begun with another description: {'; '.join(listed)}. "
            f"Scores of both cannot share a table; {self._way_out()}"
        )

    def begin(self, description: Mapping[str, Any]) -> None:
        """Keep the description, and forget what Tune kept, and what was shown, of an earlier call."""
        write_json(self.dir.description_file, description)
        shutil.rmtree(self.dir.tune_dir, ignore_errors=True)
        for file in self.dir.remarks_files():
            file.unlink(missing_ok=True)
        # Left by a call that was stopped.
        self.dir.stop_file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time runs a study. ConfigError that names the other one; a dead one's lock is free."""
        owner, lock = self.dir.owner_file, try_lock(self.dir.lock_file)
        if lock is None:  # the owner's file is only for this message
            who = owner.read_text(errors="replace") if owner.exists() else "another process"
            raise ConfigError(f"study {self.name} is being run by {who}; wait for it, stop it, or give this one a name")
        try:
            write_text(owner, f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def trials(self) -> list[Trial]:
        """Every configuration so far, in order. A damaged file is named, set aside, and its point drawn again."""
        found = []
        for file in self.dir.trial_files():
            try:
                found.append(read_trial(file))
            except DamagedFileError as error:
                # Kept, not deleted: what it cost may be worth a look.
                aside = file.with_suffix(".damaged")
                file.replace(aside)
                logger.warning("%s. It was moved to %s", error, aside.name)
        return found

    def write(self, trial: Trial) -> None:
        """Replace the configuration's file in one step."""
        write_json(self.dir.trial_file(trial.number), trial.model_dump(mode="json"))

    def _way_out(self) -> str:
        number = 2
        while self._runs.study(f"{self.name}-{number}").path.exists():
            number += 1
        return f"go on under a new name: name={self.name}-{number} (experts that did not change are reused)"


def read_trial(file: Path) -> Trial:
    """One configuration. DamagedFileError if it is not as it was written, or lies under another's number."""
    return read_json(
        file, partial(_trial_of, int(file.stem)), "its point is drawn again, and what was trained for it reused"
    )


def _trial_of(number: int, raw: dict[str, Any]) -> Trial:
    trial = Trial.model_validate(raw)
    if trial.number != number:
        raise ValueError(f"it is of configuration {trial.number}")
    return trial


def list_studies(runs: RunsDir) -> list[str]:
    """Names of the studies that have begun."""
    return [study.name for study in runs.all_studies() if study.description_file.exists()]


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

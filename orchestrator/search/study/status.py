"""The configurations of a study as somebody sees them who only looks."""

import contextlib
import re

from orchestrator.plan.places import StudyDir
from orchestrator.search.space.points import short_path, shown
from orchestrator.search.study.ledger import read_trial
from orchestrator.search.study.trial import Trial, metric_name
from workloads.config.base import StrictConfig
from workloads.errors import DamagedFileError


class ConfigurationStatus(StrictConfig):
    """One configuration of a study, in words and scores."""

    number: int
    varied: dict[str, str]
    """What the study varies, by the last parts of its paths."""

    state: str
    doing: str
    """How far its training is, while it runs."""

    scores: dict[str, float]
    runs: tuple[str, ...]
    error: str


def configurations_of(study: StudyDir) -> list[ConfigurationStatus]:
    """In order, in words and scores."""
    return [_status_of(trial, study) for trial in trials_of(study)]


def trials_of(study: StudyDir) -> list[Trial]:
    """In order; a file that cannot be read is left out, for its driver sets it right."""
    found = []
    for file in study.trial_files():
        with contextlib.suppress(OSError, DamagedFileError):
            found.append(read_trial(file))
    return found


def progress_words(study: StudyDir, number: int) -> str:
    """How far the training of a configuration is: `training 43%`. Empty if that is not known, or is not what we write.

    It has no checksum, for nothing depends on it: it is replaced every few seconds, and only shown.
    """
    try:
        words = study.progress_file(number).read_bytes()
    except OSError:
        return ""
    return words.decode() if re.fullmatch(rb"[a-z ]{1,40} \d{1,3}%", words) else ""


def _status_of(trial: Trial, study: StudyDir) -> ConfigurationStatus:
    # Fields of all experts in one: strategy.experts.*.specialisation.
    paths = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", path) for path in trial.values)
    is_running = trial.state == "running"
    return ConfigurationStatus(
        number=trial.number,
        varied={short_path(path): shown(trial.values, path) for path in paths},
        state=trial.state,
        doing=progress_words(study, trial.number) if is_running else "",
        scores={metric_name(rung): rung.value for rung in trial.rungs},
        runs=trial.runs,
        error=trial.error,
    )

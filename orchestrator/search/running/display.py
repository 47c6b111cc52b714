"""A study in the terminal: what it would take, a bar and lines while it runs, a table in the end."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.plan.masking import masked
from orchestrator.plan.places import StudyDir
from orchestrator.runs.data import require_data, spec_of
from orchestrator.search.running.remarks import remarks_of
from orchestrator.search.space.points import short_path, shown
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.feasible import measured_runs, require_affordable, warmup_remark_of
from orchestrator.search.study.status import progress_words
from orchestrator.search.study.study import Study
from orchestrator.search.study.survey import Survey, survey
from orchestrator.search.study.trial import (
    Rung,
    Trial,
    factor_saved,
    is_doubtful,
    is_tied,
    metric_name,
    other_metrics,
    ranked,
    rung_heading,
    total_images,
)
from orchestrator.search.study.trial_plans import plans_by_point
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.progress import print_line, progress
from orchestrator.terminal.tables import wide_console
from orchestrator.terminal.words import si
from workloads.evaluation.estimates import Estimate

LOOK_INTERVAL_S = 2.0
NUM_SHOWN = 20
"""Configurations the table of results lists, best first."""

MAX_SURVEY_ROWS = 12
"""Configurations the table of what a study would take lists."""

ENDED = {"finished", "stopped", "failed"}
SHORT = {"finished": "done", "stopped": "stopped early", "failed": "failed", "interrupted": "interrupted"}


class StudyDisplay:
    """Listens to the driver. Use as a context manager."""

    def __init__(self, study: Study, study_dir: StudyDir, known: Sequence[Trial], total: int | None) -> None:
        self._study, self._dir = study, study_dir
        self._trials = {trial.number: trial for trial in known}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("configurations {task.fields[now]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(study.name, total=total, now="", completed=self._num_ended)
        self._remarks: set[str] = set()
        """Those that were printed."""

        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rememe-study-display", daemon=True)

    def __enter__(self) -> "StudyDisplay":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._print_remarks()
        self._bar.update(self._task, now="")
        self._bar.stop()

    def __call__(self, trial: Trial) -> None:
        """Print how far a configuration has come, if that is news."""
        before = self._trials.get(trial.number)
        self._trials[trial.number] = trial
        if before is None or before.state != trial.state or len(before.rungs) != len(trial.rungs):
            self._print(self._line(trial))
        self._bar.update(self._task, completed=self._num_ended)

    @property
    def _num_ended(self) -> int:
        return sum(trial.state in ENDED for trial in self._trials.values())

    def _line(self, trial: Trial) -> str:
        where = ", ".join(f"{short_path(path)} {shown(trial.values, path)}" for path in self._study.space)
        scores = ", ".join(
            f"{metric_name(rung)} {rung.value:.4g}{' (not trustworthy)' if rung.doubts else ''}" for rung in trial.rungs
        )
        words = [SHORT.get(trial.state, ""), scores, trial.error]
        said = ": ".join(word for word in words if word) or "begun"
        return f"configuration {trial.number} ({where}) {said}"

    def _print(self, text: str) -> None:
        if self._console.is_terminal:
            # Shares like [1/4] are no markup.
            self._bar.print(masked(text), highlight=False, markup=False)
        else:
            print_line(text, self._console)

    def _print_remarks(self) -> None:
        """What modules have warned of in the processes of configurations, whichever said it first."""
        for file in self._dir.remarks_files():
            for text in remarks_of(file):
                if text not in self._remarks:
                    self._remarks.add(text)
                    self._print(f"note: configuration {int(file.stem)}: {text}")

    def _look(self) -> None:
        """What running configurations say of their training."""
        while not self._ended.wait(LOOK_INTERVAL_S):
            self._print_remarks()
            # A copy, for the driver adds to it meanwhile.
            running = [trial.number for trial in list(self._trials.values()) if trial.state == "running"]
            words = []
            for number in running:
                # Runners are processes, perhaps on other nodes: a file is all they share with this one.
                words.append(f"#{number} {progress_words(self._dir, number) or 'starting'}")
            self._bar.update(self._task, now=f"({', '.join(words)})" if words else "")


def print_study(study: Study, trials: Sequence[Trial]) -> None:
    """The best configurations with their scores and what they share, and in a sentence what was saved."""
    best = ranked(trials, study.ladder.rungs)
    rungs = [name for name in study.ladder.rungs if any(trial.rung(name) for trial in trials)]
    table = Table(title=f"{study.name}: best of {len(trials)} configurations")
    others = {name: other_metrics(trials, name) for name in rungs}
    scores = [part for name in reversed(rungs) for part in (rung_heading(trials, name), *others[name])]
    for column in ("", *scores, *map(short_path, study.space)):
        table.add_column(column, no_wrap=True)
    for heading in ("params", "MACs", "run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, trial in enumerate(best[:NUM_SHOWN]):
        mark = "=" if place and is_tied(best[0], trial, study.ladder.rungs) else str(place + 1)
        if is_doubtful(trial, study.ladder.rungs):
            mark = "?"
        scores = [cell for name in reversed(rungs) for cell in _cells(trial.rung(name), others[name])]
        varied = [shown(trial.values, path) for path in study.space]
        table.add_row(mark, *scores, *varied, si(trial.num_parameters), si(trial.macs), ", ".join(trial.runs))
    console = wide_console()
    console.print(table)
    for text in sorted({doubt for trial in trials for rung in trial.rungs for doubt in rung.doubts}):
        console.print(f"? is not trustworthy, and has no rank: {text}", markup=False)
    for state, words in (("stopped", "were stopped early"), ("failed", "failed")):
        count = sum(trial.state == state for trial in trials)
        if count:
            console.print(f"{count} configurations {words}")
    trained, reused = total_images(trials)
    factor = factor_saved(trained, reused)
    if factor is not None:
        console.print(
            f"= is tied with the best (within the 95 % interval of the difference). {si(trained)} training images "
            f"served for {si(trained + reused)}: a factor of {factor:.2f} saved"
        )


def plan_study(study: Study, runs_dir: Path, *, as_json: bool) -> None:
    """Print how many configurations and distinct jobs a study has, and what reusing experts saves. Starts nothing.

    ConfigError if it could not be carried out. DataError, when that is printed, if the data of the first configuration
    cannot be had.
    """
    configurations = Configurations(study)
    measured_runs(configurations)
    plans_of = plans_by_point(study, lambda config: spec_of(config, runs_dir))
    require_affordable(configurations, plans_of)
    if remark := warmup_remark_of(configurations):
        print_note(remark)
    with progress("planning", "configurations") as advance:
        found = survey(study, plans_of, advance)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_survey(study, found)
    require_data(configurations.first()[1], runs_dir)


def print_survey(study: Study, found: Survey) -> None:
    """The first configurations with what each adds, and the sums."""
    table = Table(title=f"{study.name}: {len(found.rows)} configurations")
    for column in (*map(short_path, study.space), "jobs", "new", "params", "MACs"):
        table.add_column(column, no_wrap=True)
    for row in found.rows[:MAX_SURVEY_ROWS]:
        varied = [shown(row.values, path) for path in study.space]
        table.add_row(*varied, str(row.num_jobs), str(row.num_new_jobs), si(row.num_parameters), si(row.macs))
    console = wide_console()
    console.print(table)
    if len(found.rows) > MAX_SURVEY_ROWS:
        console.print(f"... and {len(found.rows) - MAX_SURVEY_ROWS} more")
    console.print(
        f"{len(found.images)} distinct jobs instead of {found.num_jobs}: "
        f"{si(found.images_trained)} training images instead of {si(found.images_without_store)}, "
        f"{found.factor_saved:.1f} times fewer"
    )


def _cells(rung: Rung | None, others: Sequence[str]) -> list[str]:
    """The score and each other metric, with half of their 95 % intervals."""
    if rung is None:
        return [""] * (1 + len(others))
    return [_cell(Estimate(rung.value, rung.stderr)), *(_cell(rung.others.get(name)) for name in others)]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "n/a"
    return f"{estimate.value:.4g}{estimate.spread()}"

"""`rememe report STUDY`: one self-contained HTML page about a study: what was tried, what won and why."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.plan.places import RunsDir
from orchestrator.search.report import words
from orchestrator.search.report.best import boundary_picture, grid_pictures
from orchestrator.search.report.guides import forecast_picture, ladder_picture
from orchestrator.search.report.pictures import Picture
from orchestrator.search.report.reasons import front_pictures, importance_pictures
from orchestrator.search.report.rendering import write_page
from orchestrator.search.report.standing import Standing
from orchestrator.search.space.points import short_path
from orchestrator.search.study.ledger import open_ledger
from orchestrator.search.study.trial import Trial, factor_saved, other_metrics, total_images
from orchestrator.terminal.words import duration, si


def write_report(runs_dir: Path, study: str, out: Path | None) -> Path:
    """Write the page and return where it is, runs/studies/STUDY/report.html by default.

    ConfigError if there is no such study, or if its scores cannot be compared.
    """
    runs = RunsDir(runs_dir)
    ledger = open_ledger(runs, study)
    page = Page(runs, study, ledger.description() or {}, ledger.trials())
    return write_page("study.html.j2", page, out or ledger.dir.report_file)


class Page(Standing):
    """What the template asks for: who is ahead, and pictures; None or nothing where there is nothing to show."""

    words, si, duration, short = words, staticmethod(si), staticmethod(duration), staticmethod(short_path)

    def __init__(self, runs: RunsDir, name: str, description: dict[str, Any], trials: Sequence[Trial]) -> None:
        super().__init__(name, description, trials)
        self.runs = runs
        self.trained, self.reused = total_images(trials)
        self.factor_saved = factor_saved(self.trained, self.reused)
        self.elapsed_s = sum(trial.elapsed_s for trial in trials)

    def others(self, rung: str) -> list[str]:
        """What was measured beside a rung's score."""
        return other_metrics(self.trials, rung)

    @cached_property
    def grids(self) -> list[Picture]:
        """Samples of the best."""
        return grid_pictures(self, self.runs)

    @cached_property
    def boundaries(self) -> Picture | None:
        """Who owns which timesteps."""
        return boundary_picture(self, self.runs)

    @cached_property
    def importance(self) -> tuple[list[Picture], str]:
        """What matters."""
        return importance_pictures(self)

    @cached_property
    def fronts(self) -> list[tuple[Picture, str]]:
        """Score against cost."""
        return front_pictures(self)

    @cached_property
    def ladder(self) -> tuple[Picture | None, list[str]]:
        """Whether cheap scores can be trusted."""
        return ladder_picture(self)

    @cached_property
    def forecast(self) -> tuple[Picture | None, list[str]]:
        """Whether the prediction was right."""
        return forecast_picture(self)

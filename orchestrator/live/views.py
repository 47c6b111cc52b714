"""What the live page is told, as plain data: words as `rememe status` says them, curves and pictures beside them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.live.curves import Curves, LossPoints
from orchestrator.live.studies import study_view
from orchestrator.plan.events import ExpertState
from orchestrator.plan.places import RunsDir
from orchestrator.plan.standing import DriverState, ExpertStanding
from orchestrator.runs.status import STUDY_KIND, RunView, view_run, view_runs
from orchestrator.search.running.status import whole_status
from orchestrator.search.study.status import trials_of
from orchestrator.terminal.status import driver_words, expert_cells, restart_sentence, run_cells, run_words
from workloads.errors import ConfigError
from workloads.places import RunDir

MAX_RUNS = 200
"""Listed, the last begun first."""

MAX_PICTURES = 12

FIGURE_WORDS = {
    "training_loss": "training loss of each expert over images seen",
    "loss_by_timestep": "loss of each expert by timestep",
    "coefficients": "what each expert is mixed of",
    "loss_matrix": "loss of every expert at every timestep",
}


def runs_view(runs: RunsDir) -> dict[str, Any]:
    """All runs and studies, the last begun first."""
    views = view_runs(runs)
    return {
        "where": _below_home(runs.shown),
        "left_out": max(0, len(views) - MAX_RUNS),
        "runs": [
            {"name": view.run.path.name, "driver": view.driver.name.lower(), "cells": run_cells(*view[1:])}
            for view in views[:MAX_RUNS]
        ],
    }


def _below_home(shown: str) -> str:
    """~/clothes/runs: shorter, and pages are shown to others."""
    path = Path(shown)
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else shown


def run_view(runs: RunsDir, name: str, curves: Curves) -> dict[str, Any]:
    """One of them. ConfigError if there is no such run or study."""
    view = find(runs, name)
    found = whole_status(view, runs)
    status, driver = found.status, found.driver
    advice, by, doing, states = run_words(status, driver)
    experts = status.experts
    losses = curves.of([runs.job(expert.key).records for expert in experts])
    return {
        "name": name,
        "kind": status.kind,
        "driver": driver.name.lower(),
        "ended": status.ended,
        "says": driver_words(status, driver),
        "advice": advice,
        "by": by,
        "doing": doing,
        "share": _share(experts, status.done, status.total, driver),
        "states": states,
        "experts": [_expert(*one, driver) for one in zip(experts, losses, strict=True)],
        "restarts": _restarts(experts),
        "study": study_view(runs.study(name), found.configurations) if status.kind == STUDY_KIND else None,
        "pictures": [
            {"path": f"api/runs/{run.path.name}/pictures/{file.name}?at={file.stat().st_mtime_ns}", "alt": alt}
            for run, file, alt in _pictures(runs, view)
        ],
    }


def find(runs: RunsDir, name: str) -> RunView:
    """A run or a study by the name of its directory alone. ConfigError if there is none with a status."""
    for run in (runs.run_named(name), RunDir(runs.study(name).path)):
        if (view := view_run(run, is_copy=runs.is_copy)) is not None:
            return view
    raise ConfigError(f"no run or study {name!r} under {runs.shown}")


def picture_file(runs: RunsDir, name: str, file_name: str) -> Path | None:
    """One of the pictures of a run, by its file's name; None if it has none of that name."""
    files = _files_of(runs.run_named(name))
    return next((file for file, _ in files if file.name == file_name), None)


def _pictures(runs: RunsDir, view: RunView) -> list[tuple[RunDir, Path, str]]:
    """Of the run or, of a study, of the configurations' runs; the newest samples first, figures behind them."""
    if view.status.kind != STUDY_KIND:
        return [(view.run, file, alt) for file, alt in _files_of(view.run)][:MAX_PICTURES]
    dirs = [runs.run_named(name) for trial in trials_of(runs.study(view.run.path.name)) for name in trial.runs]
    grids = [(run, file) for run in dict.fromkeys(dirs) for file in run.all_grids()]
    grids.sort(key=lambda pair: -pair[1].stat().st_mtime)
    return [(run, file, f"samples of {run.path.name} ({file.stem})") for run, file in grids[:MAX_PICTURES]]


def _files_of(run: RunDir) -> list[tuple[Path, str]]:
    grids = sorted(run.all_grids(), key=lambda file: -file.stat().st_mtime)
    figures = [(file, FIGURE_WORDS.get(file.stem, file.stem)) for file in sorted(run.figures.glob("*.png"))]
    return [*((file, f"samples drawn by the trained experts ({file.stem})") for file in grids), *figures]


def _share(experts: Iterable[ExpertStanding], done: int, total: int, driver: DriverState) -> float | None:
    """Of what is being done, or of the training in multiply-adds; None if neither is counted."""
    if total and driver is DriverState.RUNS:
        return done / total
    all_macs = sum(expert.macs * expert.total_images for expert in experts)
    return sum(expert.macs * expert.images_seen for expert in experts) / all_macs if all_macs else None


def _expert(expert: ExpertStanding, curve: LossPoints, driver: DriverState) -> dict[str, Any]:
    return {
        "cells": expert_cells(expert, driver),
        "state": expert.state.name.lower(),
        "share": expert.images_seen / expert.total_images,
        "curve": [] if expert.state is ExpertState.QUEUED else curve,
    }


def _restarts(experts: Iterable[ExpertStanding]) -> list[str]:
    """The latest first."""
    found = [(restart.at_s, restart_sentence(expert, restart)) for expert in experts for restart in expert.restarts]
    return [sentence for _, sentence in sorted(found, reverse=True)]

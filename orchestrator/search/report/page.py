"""`rememe report`: one self-contained HTML page about a study: what was tried, what won and why."""

import base64
import io
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from orchestrator.plan.places import RunsDir
from orchestrator.search.inference.importance import EVALUATOR, MIN_CONFIGURATIONS, importances
from orchestrator.search.inference.statistics import Z_95, Estimate, knee, pareto_front, rank_correlation, tied
from orchestrator.search.report import words
from orchestrator.search.space.columns import columns
from orchestrator.search.space.points import flat_numbers, short_path, shown
from orchestrator.search.study.ledger import open_ledger
from orchestrator.search.study.options import FULL, LOSS, QUICK
from orchestrator.search.study.trial import Rung, Trial, metric_name, ranked, reached
from orchestrator.terminal.view import duration, si
from workloads.analysis.curves import newest_curve
from workloads.analysis.study_figures import (
    Pair,
    Strip,
    boundary_figure,
    front_figure,
    importance_figure,
    pairs_figure,
    parameters_figure,
)
from workloads.errors import ConfigError
from workloads.files import write_text

NUM_STRIPS, NUM_GRIDS = 10, 3
SMALL_DIFFERENCE = 0.01
"""Costs that differ by less than this share are called alike."""

FIGURE_DPI = 140
CSS_PX_PER_INCH = 112
TEMPLATE = Path(__file__).with_name("report.html.j2")
COSTS = {"macs": "multiply-adds per step", "num_parameters": "stored parameters", "latency_s": "seconds per call"}


class Picture(NamedTuple):
    """An image in the page."""

    source: str
    """Data URI."""

    width_px: int
    """At most this wide, in CSS pixels."""

    alt: str
    caption: str = ""


def write_report(runs_dir: Path, study: str, out: Path | None) -> Path:
    """Write the page and return where it is, runs/studies/STUDY/report.html by default.

    ConfigError if there is no such study, or if its scores cannot be compared.
    """
    from jinja2 import Environment, StrictUndefined

    runs = RunsDir(runs_dir)
    ledger = open_ledger(runs, study)
    page = Page(runs, study, ledger.description() or {}, ledger.trials())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(page=page, version=version("rememe"))
    target = out or ledger.dir.report_file
    write_text(target, text)
    return target


class Page:
    """What the template asks for; None or nothing where there is nothing to show."""

    words, si, duration, short = words, staticmethod(si), staticmethod(duration), staticmethod(short_path)

    def __init__(self, runs: RunsDir, name: str, description: dict[str, Any], trials: Sequence[Trial]) -> None:
        self.runs, self.name, self.description, self.trials = runs, name, description, trials
        self.paths = list(description.get("space", {}))
        self.rungs = _rungs(name, trials)
        self.best = ranked(trials, self.rungs)
        self.top_rung = (
            next(found for name in reversed(self.rungs) if (found := self.best[0].rung(name))) if self.best else None
        )
        self.tied = [trial for trial in self.best[1:] if self.is_tied(trial)]
        self.trained, self.reused = words.images(trials)
        self.elapsed_s = sum(trial.elapsed_s for trial in trials)
        self.protocols = [self._protocol(name) for name in reversed(self.rungs)]
        self._judged = _judged(trials, self.rungs)
        self._judged_trials = reached(trials, self._judged)
        self._scores = [_rung(trial, self._judged).value for trial in self._judged_trials]

    def varied(self, trial: Trial) -> list[str]:
        """What the configuration is, one text per path of the space."""
        return [shown(trial.values, path) for path in self.paths]

    def described(self, trial: Trial) -> str:
        """What the configuration is, in one line."""
        return ", ".join(
            f"{short_path(path)} {value}" for path, value in zip(self.paths, self.varied(trial), strict=True)
        )

    def heading(self, name: str) -> str:
        """Of a column with a rung's scores."""
        return metric_name(_rung(reached(self.trials, name)[0], name))

    def is_tied(self, trial: Trial) -> bool:
        """Whether it is not worse than the best beyond chance, on the dearest rung both have."""
        for name in reversed(self.rungs):
            a, b = self.best[0].rung(name), trial.rung(name)
            if a is not None and b is not None:
                return tied(Estimate(a.value, a.stderr), Estimate(b.value, b.stderr))
        return False

    @cached_property
    def grids(self) -> list[Picture]:
        """Samples of the best configurations, all drawn by the same protocol."""
        choices = [self._grids(name) for name in (FULL, QUICK)]
        return max(choices, key=len)

    def _grids(self, name: str) -> list[Picture]:
        found = []
        for trial in self.best[:NUM_GRIDS]:
            rung = trial.rung(name)
            if rung is None or not trial.runs:
                continue
            folder = self.runs.path / trial.runs[0]
            own = [folder / "grid.png"] if name == FULL else folder.glob(f"grid-*-{rung.protocol_hash[:8]}.png")
            for file in [file for file in own if file.exists()][:1]:
                caption = f"{metric_name(rung)} {words.score(rung)}; {self.described(trial)}"
                found.append(Picture(_data_uri(file.read_bytes()), 640, f"#{trial.number}", caption))
        return found

    @property
    def boundaries(self) -> Picture | None:
        """Who owns which timesteps in the best configurations."""
        strips: list[Strip] = []
        labels: dict[str, str] = {}
        for trial in self.best[:NUM_STRIPS]:
            jobs = [job for job in trial.jobs if not job.brief]
            labels |= {job.architecture: job.label for job in jobs}
            owners = sorted({job.interval: job.architecture for job in jobs}.items())  # of several seeds once
            strips.append(Strip(f"#{trial.number}", words.score(trial.rung(self._judged)), owners))
        if not labels:
            return None
        ends = [job.interval.hi for trial in self.best for job in trial.jobs]
        num_timesteps = int(self.description.get("num_timesteps", max(ends)))
        curves = {
            job.interval: curve
            for job in self.best[0].jobs
            if not job.brief and (curve := newest_curve(self.runs.store / job.key)) is not None
        }
        figure = boundary_figure(strips, self.heading(self._judged), labels, num_timesteps, sorted(curves.items()))
        return _picture(figure, "which expert owns which timesteps", self._protocol(self._judged))

    @cached_property
    def importance(self) -> tuple[list[Picture], str]:
        """Pictures, and a sentence on what they lack or how far to believe them."""
        points = [flat_numbers(trial.values) for trial in self._judged_trials]
        varying = columns(points)
        caption = self._protocol(self._judged) if self.best else ""
        pictures = []
        found = importances(varying, self._scores)
        if isinstance(found, str):
            said = found
        else:
            said = f"Estimated from {len(points)} configurations" + (
                ", few: take it as a hint." if len(points) < 5 * len(varying) else "."
            )
            pictures.append(_picture(importance_figure(found, EVALUATOR), "importance of each parameter", caption))
        if varying:
            figure = parameters_figure(varying, self._scores, self.heading(self._judged))
            pictures.append(_picture(figure, "score against each parameter", caption))
        return pictures, said

    @cached_property
    def fronts(self) -> list[tuple[Picture, str]]:
        """Score against each cost, and the knee in words."""
        costs = dict.fromkeys(["macs", *(cost for cost in self.description.get("objectives", ()) if cost in COSTS)])
        return [front for cost in costs if (front := self._front(cost)) is not None]

    def _front(self, cost: str) -> tuple[Picture, str] | None:
        trials = [trial for trial in self._judged_trials if getattr(trial, cost)]
        rungs = [_rung(trial, self._judged) for trial in trials]
        points = [(rung.value, float(getattr(trial, cost))) for rung, trial in zip(rungs, trials, strict=True)]
        found = {value for _, value in points}
        if len(found) < 2:
            return None
        front = pareto_front(points)
        chosen = front[knee([points[index] for index in front])]
        names = self.heading(self._judged), COSTS[cost]
        figure = front_figure(points, [Z_95 * (rung.stderr or 0.0) for rung in rungs], front, chosen, names)
        said = (
            f"{len(front)} of {len(points)} configurations are on the front. Its knee, beyond which more cost buys "
            f"little, is #{trials[chosen].number} ({self.described(trials[chosen])}): {names[0]} "
            f"{words.score(rungs[chosen])} at {si(points[chosen][1]).strip()} {COSTS[cost]}."
        )
        if max(found) - min(found) < SMALL_DIFFERENCE * max(found):
            said += " But all costs lie within 1 % of each other, so cost is no reason to choose here."
        return _picture(figure, f"score against {COSTS[cost]}", self._protocol(self._judged)), said

    @cached_property
    def ladder(self) -> tuple[Picture | None, list[str]]:
        """How well each rung predicts the next: picture and sentences."""
        pairs, said = [], []
        for cheap, dear in zip(self.rungs, self.rungs[1:], strict=False):
            both = [trial for trial in self.trials if trial.rung(cheap) and trial.rung(dear)]
            x, y = ([_rung(trial, name).value for trial in both] for name in (cheap, dear))
            if len(both) > 1:
                pairs.append(Pair(self.heading(cheap), self.heading(dear), x, y, rank_correlation(x, y)))
                verdict = words.trust(pairs[-1].correlation, len(both), poor="do not stop configurations on it")
                said.append(f"{self.heading(cheap)} as a guide to {self.heading(dear)}: {verdict}")
        caption = "; ".join(reversed(self.protocols))
        return (_picture(pairs_figure(pairs), "each score against the next", caption) if pairs else None), said

    @cached_property
    def planned(self) -> tuple[Picture | None, list[str]]:
        """Predicted against measured loss, and against the score: picture and sentences."""
        pairs, said = [], []
        for name in dict.fromkeys((LOSS, self._judged)):
            both = [trial for trial in reached(self.trials, name) if trial.predicted_loss is not None]
            if len(both) < 2:
                continue
            x, y = [trial.predicted_loss or 0.0 for trial in both], [_rung(trial, name).value for trial in both]
            pairs.append(Pair("predicted loss", self.heading(name), x, y, rank_correlation(x, y)))
            poor = "the prediction was poor, so do not plan by it"
            said.append(
                f"predicted loss as a guide to {self.heading(name)}: "
                f"{words.trust(pairs[-1].correlation, len(both), poor=poor)}"
            )
        caption = "; ".join(self._protocol(name) for name in (LOSS, self._judged) if reached(self.trials, name))
        return (_picture(pairs_figure(pairs), "predicted against measured", caption) if pairs else None), said

    def _protocol(self, name: str) -> str:
        return words.protocol(_rung(reached(self.trials, name)[0], name), self.description)


def _rungs(study: str, trials: Sequence[Trial]) -> list[str]:
    """Cheapest first; ConfigError if a rung holds scores of several protocols."""
    names = {rung.name for trial in trials for rung in trial.rungs}
    for name in names:
        hashes = {_rung(trial, name).protocol_hash for trial in reached(trials, name)}
        if len(hashes) > 1:
            raise ConfigError(
                f"study {study} has {name} scores of {len(hashes)} protocols ({', '.join(sorted(hashes))}), which "
                "cannot be compared; search again under a new name (experts are reused)"
            )
    order = {LOSS: 1, QUICK: 2, FULL: 3}
    return sorted(names, key=lambda name: (order.get(name, 0), name))


def _judged(trials: Sequence[Trial], rungs: Sequence[str]) -> str:
    """The rung to compare all by: of real scores that enough have the one most have, else of losses; dearer first."""
    real = [name for name in rungs if name in {QUICK, FULL} and len(reached(trials, name)) >= MIN_CONFIGURATIONS]
    return max(reversed(real or rungs), key=lambda name: len(reached(trials, name)), default="")


def _rung(trial: Trial, name: str) -> Rung:
    found = trial.rung(name)
    assert found is not None
    return found


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=FIGURE_DPI, format="png")
    return Picture(_data_uri(buffer.getvalue()), round(figure.get_figwidth() * CSS_PX_PER_INCH), alt, caption)


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

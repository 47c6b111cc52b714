"""`rememe report`: one self-contained HTML page about a study: what was tried, what won and why."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from orchestrator.layout import RunsDir
from orchestrator.search.importance import EVALUATOR, importances
from orchestrator.search.ledger import Trial, metric_name, open_ledger, ranked, reached
from orchestrator.search.options import FULL, LOSS, QUICK
from orchestrator.search.space import flat_numbers, short_path, shown
from orchestrator.search.statistics import Estimate, knee, pareto_front, rank_correlation, tied
from orchestrator.view import duration, si
from workloads.analysis.curves import newest_curve
from workloads.analysis.study_figures import (
    Strip,
    boundary_figure,
    front_figure,
    importance_figure,
    pairs_figure,
    parameters_figure,
)
from workloads.config import Interval
from workloads.errors import ConfigError
from workloads.files import write_text

NUM_ROWS = 20
NUM_STRIPS = 10
NUM_GRIDS = 3
GOOD, POOR = 0.7, 0.4
"""Rank correlations from which, and below which, a cheap score is called good and poor."""

FIGURE_DPI = 130
TEMPLATE = Path(__file__).with_name("report.html.j2")
COSTS = {"macs": "multiply-adds per step", "num_parameters": "stored parameters", "latency_s": "seconds per call"}


def write_report(runs_dir: Path, study: str, out: Path | None) -> Path:
    """Write the page and return where it is.

    ConfigError if there is no such study, or if its scores cannot be compared.
    """
    from jinja2 import Environment, StrictUndefined

    runs = RunsDir(runs_dir)
    ledger = open_ledger(runs, study)
    page = _Page(runs, ledger.description() or {}, ledger.trials())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(page=page, version=version("rememe"))
    target = out or ledger.path / "report.html"
    write_text(target, text)
    return target


@dataclass(frozen=True)
class _Page:
    """What the template asks for. Figures are data URIs; None where there is nothing to draw."""

    runs: RunsDir
    description: dict[str, Any]
    trials: Sequence[Trial]

    @property
    def name(self) -> str:
        return str(self.description.get("name", ""))

    @cached_property
    def rungs(self) -> list[str]:
        """Cheapest first; ConfigError if a rung holds scores of several protocols."""
        names = list(dict.fromkeys(rung.name for trial in self.trials for rung in trial.rungs))
        for name in names:
            hashes = {rung.protocol_hash for trial in self.trials if (rung := trial.rung(name))}
            if len(hashes) > 1:
                raise ConfigError(
                    f"study {self.name} has {name} scores of {len(hashes)} protocols, which cannot be compared; "
                    "search again under a new name"
                )
        order = {LOSS: 1, QUICK: 2, FULL: 3}
        return sorted(names, key=lambda name: (order.get(name, 0), name))

    @cached_property
    def best(self) -> list[Trial]:
        return ranked(self.trials, self.rungs)

    @cached_property
    def judged(self) -> str | None:
        """The rung that most configurations have a real score on, else a loss."""
        return next((name for name in (QUICK, FULL, LOSS) if len(reached(self.trials, name)) > 1), None)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    @property
    def paths(self) -> list[str]:
        return list(self.description.get("space", {}))

    def varied(self, trial: Trial) -> list[str]:
        return [shown(trial.values, path) for path in self.paths]

    def short(self, path: str) -> str:
        return short_path(path)

    def heading(self, rung: str) -> str:
        return metric_name(next(found for trial in self.trials if (found := trial.rung(rung))))

    def cell(self, trial: Trial, rung: str) -> str:
        found = trial.rung(rung)
        if found is None:
            return ""
        return f"{found.value:.4g}" + ("" if found.stderr is None else f" ± {1.96 * found.stderr:.2g}")

    def is_tied(self, trial: Trial) -> bool:
        """Whether it is not worse than the best beyond chance, on the dearest rung both have."""
        top = self.best[0]
        for name in reversed(self.rungs):
            a, b = top.rung(name), trial.rung(name)
            if a is not None and b is not None:
                return trial is not top and tied(Estimate(a.value, a.stderr), Estimate(b.value, b.stderr))
        return False

    def si(self, value: float) -> str:
        return si(value)

    def duration(self, seconds: float) -> str:
        return duration(seconds)

    @property
    def images(self) -> tuple[int, int, float]:
        """Trained, reused, factor saved."""
        trained, reused = sum(t.images_trained for t in self.trials), sum(t.images_reused for t in self.trials)
        return trained, reused, (trained + reused) / trained if trained else 1.0

    @property
    def num_jobs(self) -> tuple[int, int]:
        """Distinct networks, and how often one was used."""
        return len({job.key for t in self.trials for job in t.jobs}), sum(len(t.jobs) for t in self.trials)

    @property
    def protocols(self) -> list[str]:
        """One line per protocol, with its hash."""
        lines = []
        for rung, key in ((FULL, "evaluation"), (QUICK, "quick")):
            found = next((one for trial in self.trials if (one := trial.rung(rung))), None)
            raw = self.description.get(key)
            if found is not None and raw:
                how = raw["sampling"]
                lines.append(
                    f"{metric_name(found)}: protocol {raw['name']}, {found.num_samples:,} samples, {how['sampler']} "
                    f"with {how['num_steps']} steps, guidance {how['guidance_scale']:g}, hash {found.protocol_hash[:8]}"
                )
        return lines

    @property
    def grids(self) -> list[tuple[str, str]]:
        """Caption and picture of the best configurations that have samples."""
        found: list[tuple[str, str]] = []
        for trial in self.best:
            folders = [self.runs.path / run for run in trial.runs]
            files = [file for folder in folders for file in sorted(folder.glob("grid*.png"))]
            if files and len(found) < NUM_GRIDS:
                caption = f"#{trial.number}: {', '.join(self.varied(trial))}"
                found.append((caption, _data_uri(files[0].read_bytes())))
        return found

    @property
    def boundaries(self) -> str | None:
        strips: list[Strip] = []
        labels: dict[str, str] = {}
        for trial in self.best[:NUM_STRIPS]:
            owners = [(job.interval, job.architecture) for job in trial.jobs if not job.brief]
            labels |= {job.architecture: job.label for job in trial.jobs if not job.brief}
            strips.append(Strip(f"#{trial.number}", self.cell(trial, self._last_rung(trial)), _once(owners)))
        if not strips:
            return None
        num_timesteps = int(self.description.get("num_timesteps", 1000))
        curves = [
            (job.interval, curve)
            for job in self.best[0].jobs
            if not job.brief and (curve := newest_curve(self.runs.store / job.key)) is not None
        ]
        return _picture(boundary_figure(strips, labels, num_timesteps, curves))

    def _last_rung(self, trial: Trial) -> str:
        return next(name for name in reversed(self.rungs) if trial.rung(name))

    @cached_property
    def _judged(self) -> tuple[list[Trial], list[float], str]:
        if self.judged is None:
            return [], [], "score"
        found = reached(self.trials, self.judged)
        return found, [_value(trial, self.judged) for trial in found], self.heading(self.judged)

    @property
    def importance(self) -> tuple[str | None, str]:
        """Picture, or a sentence why there is none."""
        trials, scores, _ = self._judged
        found = importances([flat_numbers(trial.values) for trial in trials], scores)
        return (None, found) if isinstance(found, str) else (_picture(importance_figure(found, EVALUATOR)), "")

    @property
    def parameters(self) -> str | None:
        trials, scores, name = self._judged
        points = [flat_numbers(trial.values) for trial in trials]
        varying = {key: [point[key] for point in points] for key in _common(points)}
        return _picture(parameters_figure(varying, scores, name)) if varying else None

    @property
    def fronts(self) -> list[tuple[str, str]]:
        """Picture, and the knee in words, per cost."""
        trials, scores, name = self._judged
        costs = dict.fromkeys(["macs", *(cost for cost in self.description.get("objectives", ()) if cost in COSTS)])
        found = []
        for cost in costs:
            points = [(score, getattr(trial, cost)) for trial, score in zip(trials, scores, strict=True)]
            if len({value for _, value in points}) < 2 or any(value is None for _, value in points):
                continue
            front = pareto_front(points)
            chosen = front[knee([points[index] for index in front])]
            words = (
                f"Knee: configuration #{trials[chosen].number}, {name} {scores[chosen]:.4g} at {si(points[chosen][1])}"
            )
            found.append((_picture(front_figure(points, front, chosen, name, COSTS[cost])), f"{words} {COSTS[cost]}."))
        return found

    @property
    def ladder(self) -> tuple[str | None, list[str]]:
        """How well each rung predicts the next: picture and sentences."""
        pairs, words = [], []
        for cheap, dear in zip(self.rungs, self.rungs[1:], strict=False):
            both = [trial for trial in self.trials if trial.rung(cheap) and trial.rung(dear)]
            x, y = ([_value(trial, name) for trial in both] for name in (cheap, dear))
            if len(both) > 1:
                found = rank_correlation(x, y)
                pairs.append((self.heading(cheap), self.heading(dear), x, y, found))
                words.append(f"{self.heading(cheap)} for {self.heading(dear)}: {_trust(found, len(both))}")
        return (_picture(pairs_figure(pairs)) if pairs else None), words

    @property
    def planned(self) -> tuple[str | None, list[str]]:
        """Predicted against measured."""
        pairs: list[tuple[str, str, list[float], list[float], float | None]] = []
        words: list[str] = []
        for name in (LOSS, self.judged):
            both = [trial for trial in self.trials if trial.predicted_loss is not None and name and trial.rung(name)]
            if not name or len(both) < 2 or (name == LOSS and pairs):
                continue
            x, y = [trial.predicted_loss or 0.0 for trial in both], [_value(trial, name) for trial in both]
            found = rank_correlation(x, y)
            pairs.append(("predicted loss", self.heading(name), x, y, found))
            words.append(f"predicted loss for {self.heading(name)}: {_trust(found, len(both))}")
        return (_picture(pairs_figure(pairs)) if pairs else None), words


def _trust(correlation: float | None, number: int) -> str:
    if correlation is None:
        return f"{number} configurations are too few, or too alike, to tell."
    said = f"rank correlation {correlation:.2f} over {number} configurations; "
    if correlation >= GOOD:
        return said + "it can be trusted to choose who goes on."
    if correlation < POOR:
        return said + "poor: do not stop configurations on it."
    return said + "fair: it sorts out the worst, not the best."


def _value(trial: Trial, rung: str) -> float:
    found = trial.rung(rung)
    assert found is not None
    return found.value


def _once(owners: Sequence[tuple[Interval, str]]) -> list[tuple[Interval, str]]:
    """Of several seeds, each interval once."""
    return sorted(dict(owners).items())


def _common(points: Sequence[dict[str, float | str]]) -> list[str]:
    if not points:
        return []
    names = [name for name in points[0] if all(name in point for point in points)]
    return [name for name in names if len({point[name] for point in points}) > 1]


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=FIGURE_DPI, format="png")
    return _data_uri(buffer.getvalue())


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

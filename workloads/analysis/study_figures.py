"""Figures about many configurations of one study. Each function returns a Figure of its own canvas."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from workloads.analysis.curves import LossCurve
from workloads.analysis.figures import COLOURS, FAINT, INK, TIMESTEP_LABEL, log_scale, new_figure, set_title
from workloads.config.intervals import Interval

WIDTH = 8.5
"""Inches, of every figure that fills the page."""

MAX_PANELS = 12
WIDE_RANGE = 30
"""Positive values that span more than this factor get a logarithmic axis."""

DOT, BEST = "#31688e", "#c2410c"
"""Colours of a configuration, and of what is pointed at."""


class Strip(NamedTuple):
    """One configuration of the boundary plot."""

    name: str
    score: str
    owners: Sequence[tuple[Interval, str]]
    """Intervals and the architecture in charge there."""


class Pair(NamedTuple):
    """Two numbers of the same configurations."""

    x_name: str
    y_name: str
    x: Sequence[float]
    y: Sequence[float]
    correlation: float | None
    """Of ranks; None if it cannot be told."""


def boundary_figure(
    strips: Sequence[Strip],
    score_name: str,
    labels: Mapping[str, str],
    num_timesteps: int,
    curves: Sequence[tuple[Interval, LossCurve]] = (),
) -> Figure:
    """Who owns which timesteps, the best configuration on top; below, the best one's held-out loss by timestep.

    labels: architecture to what it is called. curves: the best one's networks with their intervals.
    """
    height = 0.5 + 0.3 * len(strips)
    heights = [height, 2.3] if curves else [height]
    figure, grid = new_figure(
        WIDTH, 1.3 + sum(heights), rows=len(heights), height_ratios=heights, squeeze=False, sharex=True
    )
    axes = grid[0, 0]
    names = sorted(labels, key=labels.__getitem__)
    colours = {name: COLOURS(index / max(1, len(names) - 1)) for index, name in enumerate(names)}
    for row, strip in enumerate(strips):
        for (lo, hi), architecture in strip.owners:
            axes.broken_barh([(lo, hi - lo)], (row - 0.38, 0.76), color=colours[architecture], edgecolor="white")
        axes.text(num_timesteps * 1.01, row, strip.score, va="center", fontsize=8, color=INK)
    axes.text(num_timesteps * 1.01, -0.75, score_name, va="bottom", fontsize=8, color=FAINT)
    axes.set_yticks(range(len(strips)), [strip.name for strip in strips])
    axes.set_ylim(len(strips) - 0.5, -0.6)
    axes.set_xlim(0, num_timesteps)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    handles = [Patch(color=colours[name], label=labels[name]) for name in names]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1), fontsize=8, frameon=False, ncols=3, labelcolor=INK
    )
    if curves:
        _draw_curves(grid[1, 0], curves)
    grid[-1, 0].set_xlabel(TIMESTEP_LABEL)
    hint = f"; below, the experts of {strips[0].name}: held-out loss, thick where each is in charge" if curves else ""
    set_title(figure, "Which expert owns which timesteps", f"best on top, one colour per architecture{hint}")
    return figure


def _draw_curves(axes: Axes, curves: Sequence[tuple[Interval, LossCurve]]) -> None:
    for interval, curve in curves:
        axes.stairs(curve.losses, curve.edges, baseline=None, color=FAINT, linewidth=0.9, alpha=0.7)
        edges, losses = _within(curve, interval)
        axes.stairs(losses, edges, baseline=None, color=INK, linewidth=2.2)
        axes.axvline(interval.hi, color=FAINT, linewidth=0.8, linestyle=":")
    log_scale(axes)
    axes.set_ylabel("held-out loss\n(log scale)")


def _within(curve: LossCurve, interval: Interval) -> tuple[list[int], list[float]]:
    """Edges and losses of the part of a curve inside an interval."""
    edges, losses = [interval.lo], []
    for (lo, hi), loss in zip(pairwise(curve.edges), curve.losses, strict=True):
        if hi > interval.lo and lo < interval.hi:
            edges.append(min(hi, interval.hi))
            losses.append(loss)
    return edges, losses


def importance_figure(importances: Mapping[str, float], evaluator: str) -> Figure:
    """How much of the score's variation each varied parameter explains, most important on top."""
    names = sorted(importances, key=importances.__getitem__)
    figure, axes = new_figure(WIDTH, 1.2 + 0.28 * len(names))
    axes.barh(names, [importances[name] for name in names], color=DOT, height=0.7)
    for place, name in enumerate(names):
        axes.text(importances[name], place, f" {importances[name]:.2f}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.1 * max(importances.values(), default=1.0) or 1.0)
    axes.set_xlabel("share of the importance")
    axes.grid(visible=False, axis="y")
    set_title(figure, "What the score depends on", f"{evaluator}; shares sum to 1")
    return figure


def parameters_figure(values: Mapping[str, Sequence[float | str]], scores: Sequence[float], score_name: str) -> Figure:
    """Score against each varied parameter, one panel each, at most MAX_PANELS; the best configuration stands out."""
    shown = list(values)[:MAX_PANELS]
    num_columns = max(2, min(4, len(shown)))
    rows = -(-len(shown) // num_columns)
    figure, grid = new_figure(WIDTH, 2.1 * rows + 0.6, rows=rows, columns=num_columns, squeeze=False, sharey=True)
    panels = list(np.ravel(grid))
    best = min(range(len(scores)), key=scores.__getitem__)
    for axes, name in zip(panels, shown, strict=False):
        x = _draw_positions(axes, values[name])
        axes.scatter(x, scores, s=18, color=DOT, alpha=0.75, linewidth=0)
        axes.scatter(x[best], scores[best], s=36, color=BEST, linewidth=0, zorder=3)
        axes.set_xlabel(name)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(score_name)
    set_title(figure, f"{score_name} against each parameter", "a dot is a configuration, the best in red; low is good")
    return figure


def _draw_positions(axes: Axes, column: Sequence[float | str]) -> list[float]:
    """Where values lie along x; texts stand side by side in alphabetical order."""
    numbers = [value for value in column if not isinstance(value, str)]
    if len(numbers) < len(column):
        texts = sorted({str(value) for value in column})
        axes.set_xticks(range(len(texts)), [text if len(text) <= 14 else f"{text[:13]}…" for text in texts])
        axes.set_xlim(-0.5, len(texts) - 0.5)
        return [float(texts.index(str(value))) for value in column]
    if min(numbers) > 0 and max(numbers) / min(numbers) > WIDE_RANGE:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return numbers


def front_figure(
    points: Sequence[tuple[float, float]],
    halves: Sequence[float],
    front: Sequence[int],
    knee: int,
    names: tuple[str, str],
) -> Figure:
    """Score against cost with 95 % intervals, the front drawn and its knee marked.

    points: (score, cost); halves: half-widths of the intervals; front, knee: indices of points; names: of score and
    cost.
    """
    figure, axes = new_figure(WIDTH, 3.9)
    scores, costs = zip(*points, strict=True)
    axes.errorbar(costs, scores, yerr=halves, fmt="none", ecolor="#d4d4d4", elinewidth=1)
    axes.scatter(costs, scores, s=22, color=FAINT, linewidth=0, zorder=2)
    along = sorted((costs[index], scores[index]) for index in front)
    x, y = zip(*along, strict=True)
    axes.step(x, y, where="post", color=DOT, linewidth=1.4)
    axes.scatter(x, y, s=30, color=DOT, zorder=3)
    axes.scatter(costs[knee], scores[knee], s=110, facecolor="none", edgecolor=BEST, linewidth=2, zorder=4)
    axes.annotate(
        "knee", (costs[knee], scores[knee]), xytext=(9, 7), textcoords="offset points", color=BEST, fontsize=9
    )
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel(names[1])
    axes.set_ylabel(names[0])
    set_title(
        figure, f"{names[0]} against {names[1]}", "lower left is better; the line is the Pareto front, bars are 95 %"
    )
    return figure


def pairs_figure(pairs: Sequence[Pair]) -> Figure:
    """Scatter plots side by side."""
    figure, grid = new_figure(min(WIDTH, max(4.4, 3.3 * len(pairs))), 3.4, columns=len(pairs), squeeze=False)
    for axes, pair in zip(grid[0], pairs, strict=True):
        axes.scatter(pair.x, pair.y, s=20, color=DOT, alpha=0.85, linewidth=0)
        axes.set_xlabel(pair.x_name)
        axes.set_ylabel(pair.y_name)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        said = "unknown" if pair.correlation is None else f"{pair.correlation:.2f}"
        axes.set_title(f"rank correlation {said}", fontsize=9, color=INK)
    set_title(figure, "Does one tell the other?", "each dot is a configuration that has both")
    return figure


def rows_figure(values: Mapping[str, Sequence[float]], score_name: str) -> Figure:
    """Scores of several ways to train: a dot per seed, a bar at the mean."""
    names = list(values)
    figure, axes = new_figure(WIDTH, 1.2 + 0.4 * len(names))
    for place, name in enumerate(names):
        axes.scatter(values[name], [place] * len(values[name]), s=28, color=DOT, alpha=0.85, linewidth=0, zorder=3)
        axes.plot([float(np.mean(values[name]))] * 2, [place - 0.28, place + 0.28], color=BEST, linewidth=2, zorder=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(score_name)
    set_title(figure, f"{score_name} of each row", "a dot is a seed, the bar the mean; left is better")
    return figure

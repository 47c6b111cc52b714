"""Figures about many configurations of one study. Each function returns a Figure of its own canvas."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workloads.analysis.curves import LossCurve
from workloads.analysis.figures import FAINT, INK, TIMESTEP_LABEL, new_figure, set_title
from workloads.config.intervals import Interval

MAX_PANELS = 12
BEST = "#c2410c"
"""Colour of what is pointed at."""

DOT = "#31688e"


class Strip(NamedTuple):
    """One configuration of the boundary plot."""

    name: str
    score: str
    owners: Sequence[tuple[Interval, str]]
    """Intervals and the architecture in charge there."""


def boundary_figure(
    strips: Sequence[Strip], labels: Mapping[str, str], num_timesteps: int, curves: Sequence[tuple[Interval, LossCurve]]
) -> Figure:
    """Who owns which timesteps, the best configuration on top; below, the best one's held-out loss by timestep."""
    height = 0.9 + 0.3 * len(strips)
    heights = [height, 2.2] if curves else [height]
    figure, grid = new_figure(8.5, 0.9 + sum(heights), rows=len(heights), height_ratios=heights, squeeze=False)
    axes = grid[0, 0]
    names = sorted(labels, key=labels.__getitem__)
    colours = {name: colormaps["tab10"](index % 10) for index, name in enumerate(names)}
    for row, strip in enumerate(strips):
        for (lo, hi), architecture in strip.owners:
            axes.broken_barh([(lo, hi - lo)], (row - 0.38, 0.76), color=colours[architecture], edgecolor="white")
        axes.text(num_timesteps * 1.01, row, strip.score, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(strips)), [strip.name for strip in strips])
    axes.set_ylim(len(strips) - 0.4, -0.6)
    axes.set_xlim(0, num_timesteps)
    axes.grid(visible=False)
    handles = [Patch(color=colours[name], label=labels[name]) for name in names]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False, ncols=2)
    if curves:
        below = grid[1, 0]
        for interval, curve in curves:
            below.stairs(curve.losses, curve.edges, color=FAINT, linewidth=0.8, alpha=0.6)
            edges, losses = _within(curve, interval)
            below.stairs(losses, edges, color=INK, linewidth=2.2)
            below.axvline(interval.hi, color=FAINT, linewidth=0.8, linestyle=":")
        below.set_yscale("log")
        below.set_xlim(0, num_timesteps)
        below.set_ylabel("held-out loss\n(log scale)")
        below.set_xlabel(TIMESTEP_LABEL)
    hint = "below: held-out loss of the best one's experts, thick where each is in charge" if curves else "best on top"
    set_title(figure, "Which expert owns which timesteps", hint)
    return figure


def _within(curve: LossCurve, interval: Interval) -> tuple[list[int], list[float]]:
    """The part of a curve inside an interval."""
    edges, losses = [interval.lo], []
    for lo, hi, loss in zip(curve.edges, curve.edges[1:], curve.losses, strict=False):
        if hi > interval.lo and lo < interval.hi:
            edges.append(min(hi, interval.hi))
            losses.append(loss)
    return edges, losses


def importance_figure(importances: Mapping[str, float], evaluator: str) -> Figure:
    """How much of the score's variation each varied parameter explains."""
    names = sorted(importances, key=importances.__getitem__)
    figure, axes = new_figure(7.0, 1.1 + 0.32 * len(names))
    axes.barh(names, [importances[name] for name in names], color=DOT)
    for place, name in enumerate(names):
        axes.text(importances[name], place, f" {importances[name]:.2f}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.1 * max(importances.values(), default=1.0))
    axes.set_xlabel("share of the importance")
    set_title(figure, "What the score depends on", f"{evaluator}; shares sum to 1")
    return figure


def parameters_figure(values: Mapping[str, Sequence[float | str]], scores: Sequence[float], score_name: str) -> Figure:
    """Score against each varied parameter, one panel each."""
    shown = list(values)[:MAX_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = new_figure(2.9 * columns + 0.4, 2.1 * rows + 0.7, rows=rows, columns=columns, squeeze=False)
    flat = list(np.ravel(grid))
    for axes, name in zip(flat, shown, strict=False):
        axes.scatter(values[name], scores, s=16, color=DOT, alpha=0.8, linewidth=0)
        axes.set_xlabel(name, fontsize=8)
    for axes in flat[len(shown) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(score_name)
    set_title(figure, f"{score_name} against each parameter", "a dot is a configuration; lower is better")
    return figure


def front_figure(
    points: Sequence[tuple[float, float]], front: Sequence[int], knee: int | None, score_name: str, cost_name: str
) -> Figure:
    """Score against cost, the front drawn and the knee marked. points are (score, cost), front their indices."""
    figure, axes = new_figure(7.0, 4.0)
    axes.scatter([cost for _, cost in points], [score for score, _ in points], s=22, color=FAINT, linewidth=0)
    along = sorted((points[index][1], points[index][0]) for index in front)
    axes.step([cost for cost, _ in along], [score for _, score in along], where="post", color=DOT, linewidth=1.4)
    axes.scatter([cost for cost, _ in along], [score for _, score in along], s=30, color=DOT, zorder=3)
    if knee is not None:
        score, cost = points[knee]
        axes.scatter([cost], [score], s=110, facecolor="none", edgecolor=BEST, linewidth=2, zorder=4)
        axes.annotate("knee", (cost, score), xytext=(8, 8), textcoords="offset points", color=BEST, fontsize=9)
    axes.set_xlabel(cost_name)
    axes.set_ylabel(score_name)
    set_title(figure, f"{score_name} against {cost_name}", "lower left is better; the line is the Pareto front")
    return figure


def pairs_figure(pairs: Sequence[tuple[str, str, Sequence[float], Sequence[float], float | None]]) -> Figure:
    """Scatter plots side by side: (x name, y name, x, y, rank correlation)."""
    figure, grid = new_figure(3.4 * len(pairs) + 0.3, 3.4, columns=len(pairs), squeeze=False)
    for axes, (x_name, y_name, x, y, correlation) in zip(grid[0], pairs, strict=True):
        axes.scatter(x, y, s=18, color=DOT, alpha=0.85, linewidth=0)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        said = "rank correlation unknown" if correlation is None else f"rank correlation {correlation:.2f}"
        axes.set_title(said, fontsize=9, color=INK)
    set_title(figure, "Does one tell the other?", "each dot is a configuration that has both")
    return figure

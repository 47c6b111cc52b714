"""Figures of what experts learn. Each function returns a Figure of its own canvas; the caller saves it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from workloads.analysis.spectra import Spectra
from workloads.config.intervals import Interval, IntervalTable
from workloads.training.loss_by_timestep import Curve
from workloads.training.records import TrainingRecord

DPI = 150
INK, FAINT = "#222222", "#8a8a8a"
COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.87, 256)))
"""Rises evenly in lightness, so it reads in grey and with every kind of colour blindness; without the yellow end,
which is too faint on white."""

MAX_NAMED = 8
"""More experts than this are not all named: text would be too small or too much."""

MAX_WRITTEN = 120
"""More cells than this carry no numbers."""

TIMESTEP_LABEL = "timestep t (0 = clean image)"
BLOCK_NAMES = {"down_blocks": "encoder", "mid_block": "middle", "up_blocks": "decoder", "blocks": "block"}


def training_loss_figure(records: Sequence[Sequence[TrainingRecord]], intervals: IntervalTable) -> Figure:
    """Loss over images seen, one line per expert, clean end first."""
    figure, axes = new_figure(7.0, 4.0)
    for index, (expert_records, interval) in enumerate(zip(records, intervals, strict=True)):
        axes.plot(
            [record.images_seen for record in expert_records],
            [record.loss for record in expert_records],
            color=_expert_colour(index, len(intervals)),
            label=expert_name(index, interval),
        )
    log_scale(axes)
    axes.set_xlabel("images seen by the expert")
    axes.set_ylabel("training loss (log scale)")
    axes.xaxis.set_major_formatter(lambda images, _: f"{images:,.0f}")
    _legend_outside(axes)
    set_title(
        figure, "Training loss of each expert", "a curve that still falls at the end would gain from a larger budget"
    )
    return figure


def loss_by_timestep_figure(
    curves: Sequence[Curve], intervals: IntervalTable, specialisation: Sequence[float]
) -> Figure:
    """Each expert's loss over all timesteps, thick where it works; below, where its training timesteps came from."""
    num_experts = len(intervals)
    strip_height = 0.2 + 0.18 * min(num_experts, MAX_NAMED)
    figure, (axes, strip) = new_figure(7.0, 4.2 + strip_height, rows=2, sharex=True, height_ratios=[3, strip_height])
    for index, (curve, interval) in enumerate(zip(curves, intervals, strict=True)):
        colour = _expert_colour(index, num_experts)
        axes.axvspan(*interval, color=colour, alpha=0.13, linewidth=0)
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.9, alpha=0.75)
        own = [point for point in curve if interval.lo <= point[0] < interval.hi]
        if own:
            label = expert_name(index, interval)
            axes.plot(*zip(*own, strict=True), color=colour, linewidth=2.6, marker="o", markersize=3.5, label=label)
    log_scale(axes)
    axes.set_ylabel("mean squared error\nof the prediction (log scale)")
    _legend_outside(axes)
    _draw_training_shares(strip, intervals, specialisation)
    num_best, num_points = count_owner_is_best(curves, intervals)
    set_title(
        figure,
        "Loss by timestep, thick where the expert is in charge",
        f"the expert in charge has the lowest loss at {num_best} of {num_points} timesteps"
        if num_experts > 1
        else "one network is in charge everywhere",
    )
    return figure


def coefficients_figure(table_NK: np.ndarray, intervals: IntervalTable, history: Sequence[dict[str, Any]]) -> Figure:
    """What each expert is mixed of, now and over training (Remix-DiT, arXiv:2412.05628, Fig. 4a)."""
    num_experts, num_bases = table_NK.shape
    figure = Figure(figsize=(7.5, 4.2), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, num_bases, height_ratios=[1.2, 1])
    limit = max(1.0, float(np.abs(table_NK).max()))
    options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "vmin": min(0.0, table_NK.min())}
    now = figure.add_subplot(grid[0, :])
    image = now.imshow(table_NK.T, cmap=COLOURS, vmax=limit, **options)
    now.set_ylabel("basis", size=9, color=INK)
    now.set_yticks(range(num_bases))
    step = -(-num_experts // MAX_NAMED)
    shown = range(0, num_experts, step)
    now.set_xticks(shown, [f"{index}\n{intervals[index]}" for index in shown])
    now.set_xlabel("expert and its timesteps (0 = clean image)", size=9, color=INK)
    if num_experts * num_bases <= MAX_WRITTEN:
        for (expert, basis), value in np.ndenumerate(table_NK):
            colour = "white" if value < 0.6 * limit else INK
            now.text(expert, basis, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    seen = [entry["images_seen"] for entry in history]
    for basis in range(num_bases):
        axes = figure.add_subplot(grid[1, basis])
        if history:
            over_time = np.array([entry["coefficients"] for entry in history])[:, :, basis].T
            axes.imshow(over_time, cmap=COLOURS, vmax=limit, extent=(0, seen[-1], num_experts - 0.5, -0.5), **options)
        axes.set_title(f"basis {basis}", fontsize=8, color=INK)
        axes.set_xticks([0, seen[-1]] if seen else [], ["0", f"{seen[-1]:,}"] if seen else [])
        if basis == 0:
            axes.set_ylabel("expert", size=9, color=INK)
            axes.set_xlabel("images seen", size=8, color=INK)
        else:
            axes.set_yticks([])
    for axes in figure.axes:
        axes.tick_params(colors=INK, labelsize=7)
    _colour_bar(figure, image, "coefficient")
    set_title(
        figure,
        "What each expert is mixed of",
        "top: in the end; below: each basis's share as training went on",
    )
    return figure


def loss_matrix_figure(curves: Sequence[Curve], intervals: IntervalTable) -> Figure:
    """Every expert's loss at every timestep over the best expert's there (Remix-DiT, arXiv:2412.05628, Fig. 4c)."""
    losses_NT = np.array([[loss for _, loss in curve] for curve in curves])
    excess_NT = 100 * (losses_NT / losses_NT.min(axis=0) - 1)
    num_bins = excess_NT.shape[1]
    figure = Figure(figsize=(7.0, 4.2), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # One expert that is far off would leave all others in one colour.
    limit = max(1.0, float(np.percentile(excess_NT, 95)))
    image = axes.imshow(excess_NT, cmap=COLOURS.reversed(), vmin=0, vmax=limit, aspect="auto", interpolation="nearest")
    timesteps = [timestep for timestep, _ in curves[0]]
    owners = [intervals.expert_of(timestep) for timestep in timesteps]
    for bin_index, owner in enumerate(owners):
        frame = Rectangle((bin_index - 0.5, owner - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.2)
        axes.add_patch(frame)
    step = -(-num_bins // 12)
    axes.set_xticks(range(0, num_bins, step), [str(timestep) for timestep in timesteps[::step]])
    axes.set_xlabel(TIMESTEP_LABEL, size=9, color=INK)
    axes.set_ylabel("expert", size=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    _colour_bar(figure, image, "loss above the best expert's (%)")
    num_best, num_points = count_owner_is_best(curves, intervals)
    set_title(
        figure,
        "Loss of every expert at every timestep, framed where it is in charge",
        f"the expert in charge is the best at {num_best} of {num_points} timesteps",
    )
    return figure


def _colour_bar(figure: Figure, image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=figure.axes, aspect=40, pad=0.01)
    bar.set_label(label, color=INK, size=9)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)


SPECTRA_HINT = "the lower a curve's right end, the less fine detail the block passes on"
SAME_TIMESTEPS = (
    "at one timestep rows differ by their networks alone; only what\n"
    "exceeds the differences between networks of one architecture,\n"
    "the control, may be put down to architecture"
)
OWN_TIMESTEPS = (
    "rows have timesteps of their own, so they differ by timestep as\n"
    "well as by network: nothing follows about experts from this alone"
)


def spectra_figure(networks: Sequence[Spectra], names: Sequence[str], num_timesteps: int) -> Figure:
    """A row per network, a column per block, a curve per timestep (MEME, arXiv:2306.04990, Fig. 2, 3 and 6)."""
    blocks = list(next(spectra for spectra in networks if spectra.timesteps).amplitudes)
    figure, grid = new_figure(
        max(6.0, 1.3 + 1.5 * len(blocks)),
        1.4 + 1.35 * len(networks),
        rows=len(networks),
        columns=len(blocks),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    scale = Normalize(0, num_timesteps - 1)
    for row, (name, spectra) in enumerate(zip(names, networks, strict=True)):
        for axes, block in zip(grid[row], blocks, strict=True):
            for timestep, curve_F in zip(spectra.timesteps, spectra.amplitudes.get(block, ()), strict=True):
                axes.plot(spectra.frequencies[block], curve_F, color=COLOURS(scale(timestep)), linewidth=1.3)
        grid[row, 0].set_ylabel(name.replace(": ", "\n").replace(" [", "\n["))
    for axes, block in zip(grid[0], blocks, strict=True):
        frequencies = next(spectra.frequencies[block] for spectra in networks if spectra.timesteps)
        axes.set_title(
            f"{_block_name(block)}\n{round(2 / frequencies[1]) if len(frequencies) > 1 else 1} px",
            fontsize=8,
            color=INK,
        )
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    figure.supxlabel("frequency along the diagonal (units of π per pixel)", fontsize=9, color=INK)
    figure.supylabel("relative log amplitude", fontsize=9, color=INK)
    _colour_bar(figure, ScalarMappable(scale, COLOURS), TIMESTEP_LABEL)
    shared = len({spectra.timesteps for spectra in networks}) == 1
    caution = f";\n{SAME_TIMESTEPS if shared else OWN_TIMESTEPS}" if len(networks) > 1 else ""
    set_title(figure, "Frequency content of feature maps, network by network", SPECTRA_HINT + caution)
    return figure


def count_owner_is_best(curves: Sequence[Curve], intervals: IntervalTable) -> tuple[int, int]:
    """At how many timesteps of the curves the owning expert's loss is the lowest, and of how many."""
    timesteps = [t for t, _ in curves[0]]
    losses_NT = np.array([[loss for _, loss in curve] for curve in curves])
    owners = [intervals.expert_of(t) for t in timesteps]
    return sum(int(best) == owner for best, owner in zip(losses_NT.argmin(axis=0), owners, strict=True)), len(timesteps)


def training_share(interval: Interval, specialisation: float, num_timesteps: int) -> float:
    """Share of an expert's training inside its own interval, p + (1 - p) |I| / T (MEME's soft assignment)."""
    return specialisation + (1 - specialisation) * (interval.hi - interval.lo) / num_timesteps


def _draw_training_shares(axes: Axes, intervals: IntervalTable, specialisation: Sequence[float]) -> None:
    """One row per expert: how dark says how much of its training a timestep got."""
    num_timesteps, num_experts = intervals.num_timesteps, len(intervals)
    for row, (interval, p) in enumerate(zip(intervals, specialisation, strict=True)):
        share, width = training_share(interval, p, num_timesteps), interval.hi - interval.lo
        inside = share / width
        outside = (1 - share) / (num_timesteps - width) if width < num_timesteps else 0.0
        colour = _expert_colour(row, num_experts)
        spans = [(0, interval.lo), (interval.hi, num_timesteps - interval.hi)]
        axes.broken_barh(spans, (row - 0.4, 0.8), color=colour, alpha=outside / inside, linewidth=0)
        axes.broken_barh([(interval.lo, width)], (row - 0.4, 0.8), color=colour, linewidth=0)
        if num_experts <= MAX_NAMED:
            light = np.mean(colour[:3]) < 0.45
            middle = interval.lo + width / 2
            axes.text(
                middle, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color="white" if light else INK
            )
    axes.set_ylim(num_experts - 0.4, -0.6)
    axes.set_yticks(range(num_experts) if num_experts <= MAX_NAMED else [0, num_experts - 1])
    axes.set_ylabel("expert")
    axes.set_xlim(0, num_timesteps)
    axes.set_xlabel(TIMESTEP_LABEL)
    axes.set_title("share of its training spent in its own interval", loc="left", fontsize=8, color=FAINT)
    axes.grid(visible=False)


def new_figure(width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in the common style, in inches, without touching matplotlib's global state."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    ratios = options.pop("height_ratios", None)
    grid = figure.subplots(rows, columns, gridspec_kw={"height_ratios": ratios} if ratios else None, **options)
    for axes in np.ravel(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8)
        axes.xaxis.label.set(color=INK, size=9)
        axes.yaxis.label.set(color=INK, size=9)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid


def set_title(figure: Figure, title: str, hint: str) -> None:
    """What it is, and in a second line what to see."""
    figure.suptitle(f"{title}\n{hint}", x=0.01, ha="left", fontsize=10, color=INK)


def log_scale(axes: Axes) -> None:
    """Logarithmic y axis with plain numbers, several to a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend_outside(axes: Axes) -> None:
    """Beside the axes; of many experts only some are named, their colours rise evenly."""
    handles, labels = axes.get_legend_handles_labels()
    step = -(-len(handles) // MAX_NAMED)
    axes.legend(
        handles[::step],
        labels[::step],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )


def _expert_colour(index: int, num_experts: int) -> tuple[float, float, float, float]:
    """From dark at the clean end to light at the noisy end."""
    return COLOURS(index / max(1, num_experts - 1))


def expert_name(index: int, interval: Interval) -> str:
    """As figures call it."""
    return f"expert {index} {interval}"


def _block_name(block: str) -> str:
    kind, _, index = block.partition(".")
    return f"{BLOCK_NAMES.get(kind, kind)} {index}".strip()

"""The table of a comparison: what is in it, how a cell is written, and reading it again. Free of torch."""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.terminal.words import si
from workloads.analysis.intervals import mean_interval
from workloads.errors import ConfigError
from workloads.evaluation.estimates import Z_95

COLUMNS = {
    "inception_score": "IS",
    "score": "",
    "precision": "prec.",
    "recall": "rec.",
    "sfid": "sFID",
    "kid": "KID",
    "num_active_parameters": "active",
    "num_parameters": "stored",
    "macs": "MACs",
    "steps_per_s": "steps/s",
    "peak_memory_bytes": "peak mem.",
    "latency_s": "latency",
}
"""Figures of a row, in the order of the table; the score's heading is its name."""

SCORES = ("inception_score", "score", "precision", "recall", "sfid", "kid")
"""What has an interval: over the draw of the samples, and over seeds where there are several."""

ERRORS = {name: f"{name}_stderr" for name in SCORES}
"""Names of their standard errors over the draw of the samples; earlier tables have none."""

ALWAYS_SHOWN = 4
"""Scores that have a column even where they are not to be had."""


def shown_columns(rows: Iterable[Mapping[str, Sequence[float]]]) -> list[str]:
    """Columns of the table, for rows of figures by name; metrics that nobody asked for are left out."""
    measured = {name for row in rows for name, values in row.items() if not all(map(math.isnan, values))}
    return [name for name in COLUMNS if name not in SCORES[ALWAYS_SHOWN:] or name in measured]


def cell(name: str, figures: Mapping[str, Sequence[float]]) -> str:
    """A figure's mean over seeds and, of a score, half of its 95 % interval: over seeds, or of one over its samples."""
    values = figures[name]
    mean = statistics.mean(values)
    if math.isnan(mean):
        return "n/a"
    if name == "latency_s":
        return f"{1000 * mean:.2f} ms"
    if name == "peak_memory_bytes":
        return f"{si(mean)}B"
    if name == "steps_per_s":
        return f"{mean:.2f}"
    if name not in SCORES:
        return si(mean)
    # What samples leave open differs between seeds too, so it is in their spread.
    half = mean_interval(values)[1] if len(values) > 1 else Z_95 * figures[ERRORS[name]][0]
    return f"{mean:.4g}" + ("" if math.isnan(half) else f" +- {half:.2g}")


def figures_of(line: Mapping[str, str]) -> dict[str, float]:
    """A line's figures; NaN where an earlier version wrote none."""
    return {name: float(line.get(name) or math.nan) for name in (*COLUMNS, *ERRORS.values())}


def read_table(file: Path) -> list[dict[str, str]]:
    """A line per row and seed. ConfigError if the file is not a comparison's, or holds scores of several protocols."""
    with file.open(newline="") as source:
        lines = list(csv.DictReader(source))
    try:
        for line in lines:
            figures_of(line)
            float(line["score"])
        hashes = {line["protocol_hash"] for line in lines if line["row"] and line["run"] and line["seed"]}
    except (KeyError, TypeError, ValueError):
        hashes = set()
    if len(hashes) != 1:
        said = f"it has scores of {len(hashes)} protocols" if hashes else "it is not the table of a comparison"
        raise ConfigError(f"{file} cannot be reported: {said}; rememe compare writes it anew")
    return lines

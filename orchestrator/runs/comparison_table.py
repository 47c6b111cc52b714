"""The table of a comparison: what is in it, how a cell is written, and reading it again. Free of torch."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from orchestrator.terminal.words import si
from workloads.errors import ConfigError

COLUMNS = {
    "inception_score": "IS",
    "score": "",
    "precision": "prec.",
    "recall": "rec.",
    "num_active_parameters": "active",
    "num_parameters": "stored",
    "macs": "MACs",
    "steps_per_s": "steps/s",
    "peak_memory_bytes": "peak mem.",
    "latency_s": "latency",
}
"""Figures of a row, in the order of the table; the score's heading is its name."""

SCORES = {"inception_score", "score", "precision", "recall"}
"""What differs between seeds by more than noise of the machine, and so gets an error bar."""


def cell(name: str, values: Sequence[float]) -> str:
    """A figure's mean over seeds and, of a score, its standard deviation."""
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
    digits = 3 if mean < 10 else 2
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def read_table(file: Path) -> list[dict[str, str]]:
    """A line per row and seed. ConfigError if the file is not a comparison's, or holds scores of several protocols."""
    with file.open(newline="") as source:
        lines = list(csv.DictReader(source))
    try:
        for line in lines:
            [float(line[name]) for name in COLUMNS]
        hashes = {line["protocol_hash"] for line in lines if line["row"] and line["run"] and line["seed"]}
    except (KeyError, TypeError, ValueError):
        hashes = set()
    if len(hashes) != 1:
        said = f"it has scores of {len(hashes)} protocols" if hashes else "it is not the table of a comparison"
        raise ConfigError(f"{file} cannot be reported: {said}; rememe compare writes it anew")
    return lines

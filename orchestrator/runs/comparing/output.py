"""The table of a comparison: printed, kept as CSV, and the samples side by side."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from orchestrator.runs.comparing.rows import published_notes
from orchestrator.runs.comparing.table import COLUMNS, ERRORS, cell, shown_columns
from orchestrator.runs.configuration import Outcome
from orchestrator.terminal.tables import wide_console
from workloads.analysis.intervals import shown_difference
from workloads.config.comparison import Comparison, Published
from workloads.ensemble import Ensemble
from workloads.evaluation.protocol import samples_key
from workloads.evaluation.samples import SampleStore
from workloads.files import new_file
from workloads.grid import sample_grid

NUM_SHOWN = 20
"""Samples of each row, side by side."""


@dataclass(frozen=True)
class ComparisonRow:
    """A row that is trained and scored."""

    name: str
    outcomes: Sequence[Outcome]
    figures: Mapping[str, Sequence[float]]
    """One value per seed."""


def print_comparison(comparison: Comparison, rows: Sequence[ComparisonRow]) -> None:
    """The table, what is not to be believed of it, and under which protocol it was made."""
    score = rows[0].outcomes[0].score
    assert score is not None
    num_seeds = len(comparison.seeds)
    value = f"mean over {num_seeds} seeds" if num_seeds > 1 else "value"
    table = Table(title=f"{comparison.name}: {value} +- half of its 95 % interval")
    table.add_column("", no_wrap=True)
    shown = shown_columns(row.figures for row in rows)
    for name in shown:
        table.add_column(COLUMNS[name] or score.name, justify="right", no_wrap=True)
    extra = _extra_columns(comparison, rows)
    for heading in extra:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        own = (cell(name, row.figures) for name in shown)
        table.add_row(row.name, *own, *(cells[row.name] for cells in extra.values()))
    console = wide_console()
    console.print(table)
    for text in (*_remarks(rows), *published_notes(comparison)):
        console.print(text)
    shared = ", shared by experts that are trained alone" if comparison.budget_for == "row" else " for each network"
    console.print(
        f"protocol {score.protocol['name']}, {score.num_samples:,} samples, hash {score.protocol_hash[:8]}; "
        f"{comparison.budget_images:,} images in total after the start{shared}; "
        "steps/s of one worker (all workers for a remix); a difference inside its own 95 % interval is a tie"
    )


def _extra_columns(comparison: Comparison, rows: Sequence[ComparisonRow]) -> dict[str, dict[str, str]]:
    """By heading and row: the difference to one row, the paper's score; none where there is nothing to show."""
    columns: dict[str, dict[str, str]] = {}
    if comparison.against is not None:
        scores = {row.name: row.figures["score"] for row in rows}
        columns[f"less {comparison.against}"] = {
            row.name: "" if row.name == comparison.against else difference(scores[row.name], scores[comparison.against])
            for row in rows
        }
    if comparison.published:
        columns["paper's FID"] = {row.name: _published_fid(comparison.published.get(row.name)) for row in rows}
    return columns


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean difference seed by seed, with its 95 % interval where there are several."""
    return shown_difference([one - other for one, other in zip(values, others, strict=True)], 3)


def _published_fid(published: Published | None) -> str:
    return "" if published is None or published.fid is None else f"{published.fid:.2f}"


def _remarks(rows: Sequence[ComparisonRow]) -> list[str]:
    """What of the table is not to be had, or not to be believed."""
    scores = [(row.name, outcome.score) for row in rows for outcome in row.outcomes if outcome.score]
    missing = dict.fromkeys(f"{name} of {row}: {why}" for row, one in scores for name, why in one.unavailable.items())
    found = [f"n/a: {text}" for text in missing]
    for row in rows:
        warnings = {outcome.score.warning for outcome in row.outcomes if outcome.score and outcome.score.warning}
        found += [f"[bold red]{row.name} is {warning}[/bold red]" for warning in sorted(warnings)]
    return found


def draw_comparison(file: Path, rows: Sequence[ComparisonRow]) -> None:
    """The first samples of every row for the first seed: equal noise and classes, one below the other."""
    images = []
    for row in rows:
        run = row.outcomes[0].run
        ensemble = Ensemble.load(run.path)
        protocol = ensemble.config.evaluation
        folder = run.samples(samples_key(protocol, ensemble.fingerprint))
        images += SampleStore(folder).images(protocol).__getitems__(list(range(min(NUM_SHOWN, protocol.num_samples))))
    with new_file(file) as scratch:
        sample_grid(np.stack(images), num_columns=len(images) // len(rows)).save(scratch, format="png")


def write_comparison(file: Path, comparison: Comparison, rows: Sequence[ComparisonRow]) -> None:
    """One line per row and seed."""
    with new_file(file) as scratch, scratch.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["row", "seed", "run", "protocol_hash", "num_experts", *COLUMNS, *ERRORS.values(), "doubts"])
        for row in rows:
            for index, (seed, outcome) in enumerate(zip(comparison.seeds, row.outcomes, strict=True)):
                assert outcome.score is not None
                num_experts = len(outcome.plan.config.intervals)
                figures = [row.figures[name][index] for name in (*COLUMNS, *ERRORS.values())]
                writer.writerow(
                    [
                        row.name,
                        seed,
                        outcome.run.path.name,
                        outcome.score.protocol_hash,
                        num_experts,
                        *figures,
                        "; ".join(outcome.score.doubts),
                    ]
                )

"""`rememe compare`: several strategies from one base network, under one budget and one protocol, in one table."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from orchestrator.execution.cluster import connect
from orchestrator.runs.comparison_table import COLUMNS, SCORES, cell
from orchestrator.runs.configuration import Outcome, train_configuration
from orchestrator.runs.sampling import default_device
from orchestrator.runs.surroundings import open_for_results
from orchestrator.store.storage import Storage
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.tables import wide_console
from workloads.analysis.grid import sample_grid
from workloads.analysis.latency import latency_s
from workloads.config import ProtocolConfig, RunConfig
from workloads.config.comparison import Comparison
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.evaluation.protocol import require_comparable, samples_key
from workloads.evaluation.samples import SampleStore
from workloads.files import new_file
from workloads.pipeline import check_score

NUM_SHOWN = 20
"""Samples of each row, side by side."""


@dataclass(frozen=True)
class _ComparisonRow:
    name: str
    outcomes: Sequence[Outcome]
    figures: Mapping[str, Sequence[float]]
    """One value per seed."""


def run_comparison(comparison: Comparison, runs_dir: Path, *, address: str | None, storage: str | None = None) -> None:
    """Train what is missing of every row and seed, score it, print and keep the table.

    storage: the URI that takes the place of a directory all nodes see, and has the table too.
    The same command again goes on where it stopped. Raises ConfigError if a row could not run, before any does.
    """
    _check(comparison)
    runs = open_for_results(runs_dir)
    outcomes: dict[str, list[Outcome]] = {"base": [], **{row: [] for row in comparison.rows}}
    train = partial(_train, comparison, runs_dir=runs_dir, address=address, storage=storage)
    # One connection for all: a private cluster takes seconds to start.
    with connect(address):
        for seed in comparison.seeds:
            base = train("base", seed, None)
            outcomes["base"].append(base)
            start = str(base.run.ensemble.expert(0))
            for row in comparison.rows:
                outcomes[row].append(train(row, seed, start))
    rows = [_ComparisonRow(name, found, _figures(found)) for name, found in outcomes.items()]
    _print(comparison, rows)
    file, picture = runs.table(comparison.name), runs.picture(comparison.name)
    _write(file, comparison, rows)
    _draw(picture, rows)
    if storage is not None:
        Storage.at(storage).keep_files([file, picture])
    print(f"kept in      {file}")
    print(f"samples      {picture} (a row each: {', '.join(row.name for row in rows)}; equal seeds)")


def _check(comparison: Comparison) -> None:
    """A mistake in the last row is to be found before the first is trained."""
    base = comparison.base_run(comparison.seeds[0])
    check_score(base)
    for row in comparison.rows:
        config = comparison.row_run(row, comparison.seeds[0], None)
        if _measured_by(config) != _measured_by(base):
            raise ConfigError(
                f"rows.{row} has another evaluation than the base, so their scores could not be compared; leave it out"
            )
        try:
            check_score(config)
        except ConfigError as error:
            raise ConfigError(f"rows.{row}: {error}") from None


def _measured_by(config: RunConfig) -> ProtocolConfig:
    """Whatever it is called."""
    return config.evaluation.model_copy(update={"name": ""})


def _train(
    comparison: Comparison,
    row: str,
    seed: int,
    start: str | None,
    *,
    runs_dir: Path,
    address: str | None,
    storage: str | None,
) -> Outcome:
    print_note(f"{comparison.name}: {row}, seed {seed}")
    config = comparison.base_run(seed) if row == "base" else comparison.row_run(row, seed, start)
    return train_configuration(
        config, runs_dir, address=address, evaluate=True, comparison=comparison.name, storage=storage
    )


def _figures(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for outcome in outcomes:
        score, jobs = outcome.score, outcome.plan.jobs
        assert score is not None
        require_comparable(score, outcomes[0].score or score)
        batch_size = jobs[0].job.training.batch_size
        images = sum(result.images_seen for result in outcome.results)
        values = {
            "score": score.value,
            **score.others,
            "num_active_parameters": max(job.num_active_parameters for job in jobs),
            "num_parameters": sum(job.num_parameters for job in jobs),
            "macs": max(job.macs for job in jobs),
            "steps_per_s": images / batch_size / sum(result.train_s for result in outcome.results),
            "peak_memory_bytes": max(result.peak_memory_bytes for result in outcome.results),
            "latency_s": latency_s(Ensemble.load(outcome.run.path, default_device())),
        }
        for name in COLUMNS:
            figures[name].append(values.get(name, math.nan))
    return figures


def _print(comparison: Comparison, rows: Sequence[_ComparisonRow]) -> None:
    score = rows[0].outcomes[0].score
    assert score is not None
    num_seeds = len(comparison.seeds)
    spread = "mean +- standard deviation" if num_seeds > 1 else "value"
    table = Table(title=f"{comparison.name}: {spread} over {num_seeds} seed{'s' if num_seeds > 1 else ''}")
    table.add_column("", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading or score.name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *(cell(name, row.figures[name]) for name in COLUMNS))
    console = wide_console()
    console.print(table)
    for text in _remarks(rows):
        console.print(text)
    console.print(
        f"protocol {score.protocol['name']}, {score.num_samples:,} samples, hash {score.protocol_hash[:8]}; "
        f"{comparison.budget_images:,} images in total after the base, shared by experts that are trained alone; "
        "steps/s of one worker (all workers for a remix); a difference within the spread is a tie"
    )


def _remarks(rows: Sequence[_ComparisonRow]) -> list[str]:
    """What of the table is not to be had, or not to be believed."""
    missing = [COLUMNS[name] for name in SCORES if name != "score" and any(map(math.isnan, rows[0].figures[name]))]
    found = (
        [f"n/a: {', '.join(sorted(missing))} not available with these weights, or from so few images"]
        if missing
        else []
    )
    for row in rows:
        warnings = {outcome.score.warning for outcome in row.outcomes if outcome.score and outcome.score.warning}
        found += [f"[bold red]{row.name} is {warning}[/bold red]" for warning in sorted(warnings)]
    return found


def _draw(file: Path, rows: Sequence[_ComparisonRow]) -> None:
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


def _write(file: Path, comparison: Comparison, rows: Sequence[_ComparisonRow]) -> None:
    """One line per row and seed."""
    with new_file(file) as scratch, scratch.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["row", "seed", "run", "protocol_hash", "num_experts", *COLUMNS, "doubts"])
        for row in rows:
            for index, (seed, outcome) in enumerate(zip(comparison.seeds, row.outcomes, strict=True)):
                assert outcome.score is not None
                num_experts = len(outcome.plan.config.intervals)
                figures = [row.figures[name][index] for name in COLUMNS]
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

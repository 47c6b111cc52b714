"""`rememe compare`: several strategies under one budget and one protocol, in one table."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from orchestrator.execution.cluster import connect
from orchestrator.runs.comparing.output import (
    ComparisonRow,
    draw_comparison,
    print_comparison,
    write_comparison,
)
from orchestrator.runs.comparing.rows import check_rows
from orchestrator.runs.comparing.table import COLUMNS, ERRORS
from orchestrator.runs.configuration import Outcome, train_configuration
from orchestrator.runs.sampling import default_device
from orchestrator.runs.surroundings import open_for_results
from orchestrator.store.storage import Storage
from orchestrator.terminal.notes import print_note
from orchestrator.terminal.progress import counting
from workloads.analysis.latency import latency_s
from workloads.config.comparison import Comparison
from workloads.ensemble import Ensemble
from workloads.evaluation.protocol import require_comparable


def run_comparison(comparison: Comparison, runs_dir: Path, *, address: str | None, storage: str | None = None) -> None:
    """Train what is missing of every row and seed, score it, print and keep the table.

    storage: the URI that takes the place of a directory all nodes see, and has the table too.
    The same command again goes on where it stopped. Raises ConfigError if a row could not run, before any does.
    """
    check_rows(comparison)
    runs = open_for_results(runs_dir)
    outcomes: dict[str, list[Outcome]] = {row: [] for row in comparison.row_names}
    train = partial(_train, comparison, runs_dir=runs_dir, address=address, storage=storage)
    # One connection for all: a private cluster takes seconds to start.
    with connect(address):
        for seed in comparison.seeds:
            base = train(comparison.base_name, seed, None)
            outcomes[comparison.base_name].append(base)
            start = str(base.run.ensemble.expert(0))
            for row in comparison.rows:
                outcomes[row].append(train(row, seed, start))
    rows = _measured(outcomes)
    print_comparison(comparison, rows)
    file, picture = runs.table(comparison.name), runs.picture(comparison.name)
    write_comparison(file, comparison, rows)
    draw_comparison(picture, rows)
    if storage is not None:
        Storage.at(storage).keep_files([file, picture])
    print(f"kept in      {file}")
    print(f"samples      {picture} (a row each: {', '.join(row.name for row in rows)}; equal seeds)")


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
    config = comparison.run(row, seed, start)
    return train_configuration(
        config, runs_dir, address=address, evaluate=True, comparison=comparison.name, storage=storage
    )


def _measured(outcomes: Mapping[str, Sequence[Outcome]]) -> list[ComparisonRow]:
    with counting("measuring", "runs", sum(map(len, outcomes.values()))) as on_measured:
        return [ComparisonRow(name, found, _figures(found, on_measured)) for name, found in outcomes.items()]


def _figures(outcomes: Sequence[Outcome], on_measured: Callable[[], None]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in (*COLUMNS, *ERRORS.values())}
    for outcome in outcomes:
        score, plan = outcome.score, outcome.plan
        assert score is not None
        require_comparable(score, outcomes[0].score or score)
        batch_size = plan.jobs[0].job.training.batch_size
        images = sum(result.images_seen for result in outcome.results)
        values = {
            "score": score.value,
            **score.others,
            **{f"{name}_stderr": error for name, error in score.others_stderr.items()},
            "score_stderr": math.nan if score.stderr is None else score.stderr,
            "num_active_parameters": plan.num_active_parameters,
            "num_parameters": plan.num_parameters,
            "macs": plan.macs,
            "steps_per_s": images / batch_size / sum(result.train_s for result in outcome.results),
            "peak_memory_bytes": max(result.peak_memory_bytes for result in outcome.results),
            "latency_s": latency_s(Ensemble.load(outcome.run.path, default_device())),
        }
        for name, found in figures.items():
            found.append(values.get(name, math.nan))
        on_measured()
    return figures

"""`rememe plan COMPARISON`: each row's sizes, beside those that the paper prints."""

from collections.abc import Sequence

from rich.table import Table

from orchestrator.runs.comparing.rows import PlannedRow, published_notes
from orchestrator.terminal.tables import wide_console
from orchestrator.terminal.words import si
from workloads.config.comparison import Comparison

LEFT = ("row", "network", "from")
OURS = ("experts", "images", "active", "stored", "MACs")
PAPERS = {"num_parameters": "params", "macs": "MACs", "fid": "FID", "inception_score": "IS"}
"""The paper's figures that are shown, and their headings."""


def print_rows(comparison: Comparison, rows: Sequence[PlannedRow]) -> None:
    """A line per row, what the paper prints of it, and why that differs."""
    num_seeds = len(comparison.seeds)
    table = Table(title=f"{comparison.name}: {len(rows)} rows, {num_seeds} seed{'s' if num_seeds > 1 else ''} each")
    for name in LEFT:
        table.add_column(name, no_wrap=True)
    for name in (*OURS, *(f"paper's {heading}" for heading in PAPERS.values() if comparison.published)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), *(_published(row) if comparison.published else ()))
    console = wide_console()
    console.print(table)
    for text in published_notes(comparison):
        console.print(text)
    training = num_seeds * sum(job.expected_macs for row in rows for job in row.plan.jobs)
    protocol = comparison.base_run(comparison.seeds[0]).evaluation
    console.print(
        f"active: parameters of one denoising step; training all rows and seeds takes about {si(training)} MACs; "
        f"each is scored by {protocol.name}, {protocol.num_samples:,} samples"
    )


def _cells(row: PlannedRow) -> list[str]:
    kinds = sorted({job.job.model.kind for job in row.plan.jobs})
    sizes = [si(row.plan.num_active_parameters), si(row.plan.num_parameters), si(row.plan.macs)]
    experts = str(len(row.plan.config.intervals))
    return [row.name, ", ".join(kinds), row.start, experts, f"{row.plan.images:,}", *(size.strip() for size in sizes)]


def _published(row: PlannedRow) -> list[str]:
    cells = []
    for name in PAPERS:
        value = None if row.published is None else getattr(row.published, name)
        if value is None:
            cells.append("")
        else:
            cells.append(si(value).strip() if name in {"num_parameters", "macs"} else f"{value:.2f}")
    return cells

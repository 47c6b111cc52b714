"""How much of remixes' coefficients is learned: a line per run, and per set of runs that differ in their seed."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from orchestrator.runs.seeds import by_row
from orchestrator.terminal.tables import wide_console
from workloads.analysis.coefficients import Pattern, pattern
from workloads.analysis.intervals import mean_interval
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.models.growth import is_remix
from workloads.models.initial import resolve_initial
from workloads.training.remix.state import initial_coefficients

COLUMNS = ("moved", "learned", "order at start", "order in the end")


@dataclass(frozen=True)
class Learned:
    """The pattern of one trained remix."""

    run: Path
    name: str
    pattern: Pattern

    @property
    def figures(self) -> tuple[float, ...]:
        """In the order of COLUMNS."""
        moved, _, start, end = astuple(self.pattern)
        return moved, self.pattern.learned, start, end

    def to_json(self) -> dict[str, Any]:
        """One entry of `rememe analyze coefficients --json`."""
        figures = {name.replace(" ", "_"): value for name, value in zip(COLUMNS, self.figures, strict=True)}
        return {"run": str(self.run), "name": self.name, **figures}


def coefficients_of(runs: Sequence[Path]) -> list[Learned]:
    """Of each run. ConfigError, naming the run, for one that is no remix or has too few experts."""
    return [_learned(run) for run in runs]


def show_coefficients(runs: Sequence[Path]) -> None:
    """Print the table; raises what coefficients_of does."""
    found = coefficients_of(runs)
    table = Table(title="coefficients, in the end against the start")
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        table.add_row(one.run.name, *(f"{value:.3f}" for value in one.figures))
    for name, members in by_row(found).items():
        if len(members) > 1:
            intervals = [mean_interval(values) for values in zip(*(one.figures for one in members), strict=True)]
            table.add_row(f"{name}, {len(members)} seeds", *(f"{mean:.3f} +- {half:.3f}" for mean, half in intervals))
    console = wide_console()
    console.print(table)
    console.print(
        "moved: total variation distance of an expert's coefficients from their start; learned: share of the variance "
        "of distances between experts that the start does not explain; order: correlation of experts' distance in "
        "coefficients with that in timesteps, which the contiguous prior puts there and a shuffled one does not; +-: "
        "95 % interval over seeds"
    )


def _learned(run: Path) -> Learned:
    ensemble = Ensemble.load(run)
    config = ensemble.config
    if not ensemble.is_mixed:
        raise ConfigError(f"{run} is of strategy.kind {config.strategy.kind}, which has no coefficients; name a remix")
    start = config.initial_weights
    if start is not None and is_remix(resolve_initial(start).path):
        raise ConfigError(
            f"{run} grew from another remix, so its coefficients did not begin with the prior; leave it out"
        )
    begun_NK = initial_coefficients(config, ensemble.data, ensemble.num_coefficient_rows).double().numpy()
    try:
        found = pattern(begun_NK, ensemble.coefficients_NK.astype(np.float64))
    except ValueError as error:
        raise ConfigError(f"{run}: {error}; name a remix of more experts") from None
    return Learned(run, config.name, found)

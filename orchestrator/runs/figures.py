"""The figures of a trained configuration, whichever strategy it has."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from orchestrator.plan.jobs import Plan
from orchestrator.plan.places import RunsDir
from workloads.analysis.csv_text import Table
from workloads.analysis.figures import (
    coefficients_figure,
    loss_by_timestep_figure,
    loss_matrix_figure,
    training_loss_figure,
)
from workloads.analysis.loss_by_timestep import ensemble_loss_by_timestep
from workloads.config import IntervalTable
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble
from workloads.training.coefficients import read_coefficients
from workloads.training.loss_by_timestep import Curve
from workloads.training.records import TrainingRecord, read_records
from workloads.training.result import JobResult

MATRIX_IMAGES = 64
"""Images behind each cell of a remix's loss matrix."""

MAX_MATRIX_EXPERTS = 64
"""A matrix of more experts could not be read, and would take long to measure."""


class Drawn(NamedTuple):
    """A figure, and the numbers it shows."""

    figure: Figure
    table: Table


def training_figures(
    plan: Plan,
    runs: RunsDir,
    results: Sequence[JobResult],
    ensemble: Ensemble,
    dataset: PreparedDataset,
    on_progress: Callable[[int, int], None],
) -> dict[str, Drawn]:
    """Figures by name: loss over training, loss by timestep; for a remix, its coefficients and its loss matrix too."""
    jobs, intervals = [job.job for job in plan.jobs], plan.config.intervals
    records = [read_records(runs.job(job.key).records) for job in jobs]
    if not ensemble.is_mixed:
        curves = [result.loss_by_timestep for result in results]
        shares = [job.own_share for job in jobs]
        by_timestep = loss_by_timestep_figure(curves, intervals, shares)
        return {
            "training_loss": Drawn(training_loss_figure(records, intervals), _records_table(records)),
            "loss_by_timestep": Drawn(by_timestep, _curves_table(curves, intervals)),
        }
    whole = IntervalTable((), intervals.num_timesteps)
    table_NK, history = ensemble.coefficients_NK, read_coefficients(runs.job(jobs[0].key).coefficients)
    figures = {
        "training_loss": Drawn(training_loss_figure(records, whole), _records_table(records)),
        "coefficients": Drawn(
            coefficients_figure(table_NK, intervals, history), _coefficients_table(table_NK, history)
        ),
    }
    if len(intervals) <= MAX_MATRIX_EXPERTS:
        matrix = ensemble_loss_by_timestep(ensemble, dataset, num_images=MATRIX_IMAGES, on_progress=on_progress)
        table = _curves_table(matrix, intervals)
        figures["loss_matrix"] = Drawn(loss_matrix_figure(matrix, intervals), table)
        by_timestep = loss_by_timestep_figure(matrix, intervals, [1.0] * len(intervals))
        figures["loss_by_timestep"] = Drawn(by_timestep, table)
    return figures


def _records_table(records: Sequence[Sequence[TrainingRecord]]) -> Table:
    rows = [(expert, one.images_seen, one.loss) for expert, found in enumerate(records) for one in found]
    return Table(("expert", "images_seen", "loss"), rows)


def _curves_table(curves: Sequence[Curve], intervals: IntervalTable) -> Table:
    rows = [
        (expert, timestep, loss, interval.lo <= timestep < interval.hi)
        for expert, (curve, interval) in enumerate(zip(curves, intervals, strict=True))
        for timestep, loss in curve
    ]
    return Table(("expert", "timestep", "loss", "in_charge"), rows)


def _coefficients_table(table_NK: np.ndarray, history: Sequence[dict[str, Any]]) -> Table:
    """Over training and, with no images seen, in the end."""
    tables = [*((entry["images_seen"], np.array(entry["coefficients"])) for entry in history), ("", table_NK)]
    rows = [(seen, *place, float(value)) for seen, found in tables for place, value in np.ndenumerate(found)]
    return Table(("images_seen", "expert", "basis", "coefficient"), rows)

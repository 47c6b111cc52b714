"""The figures of a trained configuration, whichever strategy it has."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from orchestrator.plan.jobs import Plan
from orchestrator.plan.places import RunsDir
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
from workloads.training.records import read_records
from workloads.training.result import JobResult

MATRIX_IMAGES = 64
"""Images behind each cell of a remix's loss matrix."""

MAX_MATRIX_EXPERTS = 64
"""A matrix of more experts could not be read, and would take long to measure."""


def training_figures(
    plan: Plan,
    runs: RunsDir,
    results: Sequence[JobResult],
    ensemble: Ensemble,
    dataset: PreparedDataset,
    on_progress: Callable[[int, int], None],
) -> dict[str, Figure]:
    """Figures by name: loss over training, loss by timestep; for a remix, its coefficients and its loss matrix too."""
    jobs, intervals = [job.job for job in plan.jobs], plan.config.intervals
    records = [read_records(runs.job(job.key).records) for job in jobs]
    if not ensemble.is_mixed:
        curves = [result.loss_by_timestep for result in results]
        shares = [job.own_share for job in jobs]
        return {
            "training_loss": training_loss_figure(records, intervals),
            "loss_by_timestep": loss_by_timestep_figure(curves, intervals, shares),
        }
    whole = IntervalTable((), intervals.num_timesteps)
    figures = {
        "training_loss": training_loss_figure(records, whole),
        "coefficients": coefficients_figure(
            ensemble.coefficients_NK, intervals, read_coefficients(runs.job(jobs[0].key).coefficients)
        ),
    }
    if len(intervals) <= MAX_MATRIX_EXPERTS:
        matrix = ensemble_loss_by_timestep(ensemble, dataset, num_images=MATRIX_IMAGES, on_progress=on_progress)
        figures["loss_matrix"] = loss_matrix_figure(matrix, intervals)
        figures["loss_by_timestep"] = loss_by_timestep_figure(matrix, intervals, [1.0] * len(intervals))
    return figures

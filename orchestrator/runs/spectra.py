"""What frequencies trained networks carry: a figure asked for afterwards, on disk and in the MLflow run."""

from pathlib import Path

from orchestrator.plan.jobs import make_plan
from orchestrator.runs.data import prepare_data_of
from orchestrator.runs.surroundings import open_for_results
from orchestrator.tracking.configuration import open_configuration
from orchestrator.tracking.tracker import Tracker
from workloads.analysis.figures import spectra_figure
from workloads.analysis.spectra import ensemble_spectra
from workloads.ensemble import Ensemble
from workloads.files import new_file
from workloads.places import RunDir

FIGURE_DPI = 150


def plot_spectra(run: Path, runs_dir: Path, *, num_images: int, seed: int, out: Path | None) -> Path:
    """Relative log amplitude of each block's feature maps, a row per expert; the file.

    For `single`, one row over all of t.
    """
    runs = open_for_results(runs_dir)
    ensemble = Ensemble.load(run)
    dataset = prepare_data_of(ensemble.config, runs)
    spectra = ensemble_spectra(ensemble, dataset, num_images=num_images, seed=seed)
    file = out or RunDir(ensemble.path.parent).figure("spectra")
    with new_file(file) as scratch:
        spectra_figure(spectra, ensemble.intervals).savefig(scratch, dpi=FIGURE_DPI, format=file.suffix[1:] or "png")
    plan = make_plan(ensemble.config, ensemble.data)
    with Tracker(runs.path) as tracker:
        tracked = open_configuration(tracker, plan, ensemble.path.parent.name)
        tracked.log_artifact(file, "figures")
        tracked.finish("FINISHED")
    return file

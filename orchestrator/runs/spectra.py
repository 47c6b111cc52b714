"""`rememe analyze`: figures about trained networks, on disk and in the MLflow run."""

from pathlib import Path

from orchestrator.runs.description import flatten, prepare_data_of, to_yaml
from orchestrator.plan.places import RunsDir
from orchestrator.plan.jobs import plan
from orchestrator.tracking.tracker import Tracker
from workloads.analysis.figures import spectra_figure
from workloads.analysis.spectra import ensemble_spectra
from workloads.ensemble import Ensemble

FIGURE_DPI = 150


def plot_spectra(run: Path, runs_dir: Path, *, num_images: int, seed: int, out: Path | None) -> None:
    """Relative log amplitude of each block's feature maps, a row per expert; for `single`, one row over all of t."""
    runs = RunsDir(runs_dir)
    ensemble = Ensemble.load(run)
    dataset = prepare_data_of(ensemble.config, runs)
    spectra = ensemble_spectra(ensemble, dataset, num_images=num_images, seed=seed)
    file = out or ensemble.path.parent / "figures" / "spectra.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    spectra_figure(spectra, ensemble.intervals).savefig(file, dpi=FIGURE_DPI)
    planned = plan(ensemble.config, ensemble.data)
    with Tracker(runs.path) as tracker:
        tracked = tracker.configuration(
            ensemble.path.parent.name, planned.fingerprint, flatten(ensemble.config), to_yaml(ensemble.config)
        )
        tracked.log_artifact(file, "figures")
        tracked.finish("FINISHED")
    print(file)

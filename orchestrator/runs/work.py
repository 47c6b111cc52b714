"""One configuration while it is worked on: train what is missing, gather, draw figures, sample, score. No tracker."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from orchestrator.runs.description import to_yaml
from orchestrator.plan.errors import ExpertsFailedError, RunStoppedError
from orchestrator.execution.supervisor import Listener, TrainingOutcome, train_experts
from orchestrator.runs.figures import training_figures
from orchestrator.execution.tasks import generate_samples, score_on_cluster
from orchestrator.execution.joint import train_joint
from orchestrator.plan.places import RunsDir
from orchestrator.plan.jobs import Plan
from orchestrator.store.experts import ExpertStore
from orchestrator.terminal.view import progress
from workloads.analysis.grid import sample_grid
from workloads.config import ProtocolConfig
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import INDEX, Ensemble, write_ensemble
from workloads.evaluation.protocol import Score, samples_key
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import evaluate_samples
from workloads.files import write_text
from workloads.training.result import JobResult

GRID_COLUMNS = 10
GRID_ROWS = 10
FIGURE_DPI = 150


@dataclass(frozen=True)
class Scored:
    """A score and the picture that goes with it."""

    score: Score
    protocol: ProtocolConfig
    grid: Path
    is_own: bool
    """Whether the protocol is the run description's own."""


@dataclass(frozen=True)
class Work:
    """A plan, and the directories it is carried out in, on the connected cluster."""

    planned: Plan
    runs: RunsDir
    store: ExpertStore
    run_dir: Path

    def describe(self) -> None:
        """Leave a description that can be run again."""
        write_text(self.run_dir / "config.yaml", to_yaml(self.planned.config))
        write_text(self.run_dir / "plan.json", json.dumps(self.planned.to_json(), indent=2))

    def train(
        self,
        dataset: PreparedDataset,
        listeners: Sequence[Listener] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainingOutcome:
        """Train what the store lacks. Look at the outcome with require_complete."""
        jobs, execution = self.planned.jobs, self.planned.config.execution
        if jobs[0].job.is_joint:
            return train_joint(jobs[0], dataset.path, self.store, execution, listeners, should_stop=should_stop)
        return train_experts(jobs, dataset.path, self.store, execution, listeners, should_stop=should_stop)

    def require_complete(self, outcome: TrainingOutcome) -> list[JobResult]:
        """Results in the order of the plan. Raises RunStoppedError or ExpertsFailedError unless all are there."""
        jobs = self.planned.jobs
        if outcome.stopped:
            raise RunStoppedError(
                f"stopped with {len(outcome.completed)} of {len(jobs)} experts done; checkpoints are written, "
                "run the same command again to continue"
            )
        if outcome.failed:
            raise ExpertsFailedError(outcome.failed)
        return [outcome.completed[job.key] for job in jobs]

    def gather(self, dataset: PreparedDataset) -> Ensemble:
        """The experts in one directory."""
        target = self.run_dir / "ensemble"
        folders = [self.store.path(job.key) for job in self.planned.jobs]
        if (target / INDEX).is_file():
            ensemble = Ensemble.load(target)
            found = [self.store.completed(job.key) for job in self.planned.jobs]
            if ensemble.index.weights_sha256 == tuple(result.weights_sha256 for result in found if result):
                return ensemble
        return write_ensemble(target, self.planned.config, dataset, folders)

    def figures(self, results: Sequence[JobResult], ensemble: Ensemble, dataset: PreparedDataset) -> list[Path]:
        """Pictures of what was learned, as PNG files in the run directory."""
        with progress("measuring", "experts") as advance:
            figures = training_figures(self.planned, self.runs.store, results, ensemble, dataset, advance)
        folder = self.run_dir / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.png" for name in figures]
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file, dpi=FIGURE_DPI)
        return files

    def score(
        self,
        ensemble: Ensemble,
        protocol: ProtocolConfig,
        reference: PreparedDataset,
        *,
        with_others: bool = False,
        with_stderr: bool = False,
        on_cluster: bool = False,
    ) -> Scored:
        """Sample on the connected cluster, measure, and keep the score with its protocol and a grid of samples.

        on_cluster: measure there too, with what the configuration asks for; else here, with a progress bar.
        """
        samples = SampleStore(self.run_dir / "samples" / samples_key(protocol, ensemble.fingerprint))
        resources = ensemble.config.execution.resources
        with progress("sampling", "images", shown=not on_cluster) as advance:
            generate_samples(ensemble, protocol, samples, resources=resources, on_progress=advance)
        extra = {"with_others": with_others, "with_stderr": with_stderr}
        if on_cluster:
            score = score_on_cluster(samples, reference, protocol, self.runs.cache, resources=resources, **extra)
        else:
            with progress("scoring", "images") as advance:
                score = evaluate_samples(
                    samples,
                    reference,
                    protocol,
                    cache_dir=self.runs.cache,
                    device=driver_device(),
                    on_progress=advance,
                    **extra,
                )
        self._keep(score)
        is_own = protocol == ensemble.config.evaluation
        grid = self.run_dir / ("grid.png" if is_own else f"grid-{protocol.name}-{score.protocol_hash[:8]}.png")
        _save_grid(samples, protocol, grid)
        return Scored(score, protocol, grid, is_own)

    def _keep(self, score: Score) -> None:
        file = self.run_dir / "scores.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        write_text(file, json.dumps(kept | {score.protocol_hash: asdict(score)}, indent=2))


def _save_grid(samples: SampleStore, protocol: ProtocolConfig, file: Path) -> None:
    images = samples.images(protocol)
    shown = images.__getitems__(list(range(min(len(images), GRID_COLUMNS * GRID_ROWS))))
    sample_grid(np.stack(shown), num_columns=GRID_COLUMNS).save(file)


def driver_device() -> str:
    """Where the driver measures."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

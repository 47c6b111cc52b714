"""One configuration while it is worked on: train what is missing, gather, draw figures, sample, score. No tracker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.execution.supervisor import train_experts
from orchestrator.execution.tasks import generate_samples, measure_curves, score_on_cluster
from orchestrator.plan.description import to_yaml
from orchestrator.plan.errors import ExpertsFailedError, RunStoppedError
from orchestrator.plan.events import EventListener
from orchestrator.plan.jobs import Plan
from orchestrator.plan.outcome import TrainingOutcome
from orchestrator.plan.places import RunsDir
from orchestrator.runs.figures import training_figures
from orchestrator.runs.sampling import default_device
from orchestrator.store.experts import ExpertStore
from orchestrator.store.storage import Folder, Storage
from orchestrator.terminal.progress import ProgressListener, progress
from workloads.analysis.curves import LossCurve, read_curve
from workloads.analysis.held_out import curve_file
from workloads.config import ProtocolConfig
from workloads.config.evaluation import HeldOutSpec, Metric
from workloads.config.load import CONFIG_SHA256
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble
from workloads.evaluation.protocol import Score
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import evaluate_samples
from workloads.files import new_file, sha256_file, write_text
from workloads.pipeline import Scored, draw_here, gather, score_ensemble
from workloads.places import RunDir
from workloads.sealed import write_json
from workloads.training.result import JobResult

FIGURE_DPI = 150

FEW_SAMPLES_MACS = 10**10
"""Multiply-adds of a second or two: less than the eight that a worker needs to import what it samples with."""


@dataclass(frozen=True)
class Work:
    """A plan, and the directories it is carried out in, on the connected cluster.

    With a storage, these are this machine's own; other nodes take what they need from the storage, where results go.
    """

    plan: Plan
    runs: RunsDir
    store: ExpertStore
    run: RunDir
    storage: Storage | None = None

    def write_description(self) -> None:
        """Leave a description that can be run again, beside what an earlier run has left in the storage."""
        if self.storage is not None:
            self.storage.restore_run(self.run)
        write_text(self.run.config, to_yaml(self.plan.config))
        write_json(self.run.plan, {**self.plan.to_json(), CONFIG_SHA256: sha256_file(self.run.config)})
        self.keep()

    def keep(self) -> None:
        """Have what the run directory holds now in the storage too."""
        if self.storage is not None:
            self.storage.keep_run(self.run)

    def train(
        self,
        dataset: PreparedDataset,
        listeners: Sequence[EventListener] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainingOutcome:
        """Train what the store lacks. Look at the outcome with require_complete."""
        jobs, execution = self.plan.jobs, self.plan.config.execution
        if self.storage is not None:
            for initial in {job.job.initial for job in jobs if job.job.initial is not None}:
                self.storage.keep_initial(initial)
        data = self._data_at_nodes(dataset)
        return train_experts(jobs, data, self.store, execution, listeners, should_stop=should_stop)

    def _data_at_nodes(self, dataset: PreparedDataset) -> Folder:
        return dataset.path if self.storage is None else self.storage.keep_data(dataset.path, dataset.fingerprint)

    def ensemble_at_nodes(self, ensemble: Ensemble, *, shown: bool = False) -> Folder:
        """Where nodes find the run's ensemble. shown: with a progress bar while it is sent."""
        if self.storage is None:
            return ensemble.path.absolute()  # nodes stand elsewhere
        with progress("sending the ensemble", "files", shown=shown) as advance:
            return self.storage.keep_ensemble(self.run, advance)

    def held_out_curves(self, dataset: PreparedDataset, spec: HeldOutSpec) -> list[LossCurve]:
        """The held-out loss of every finished job at every timestep; each is measured once, on the cluster."""
        for job in self.plan.jobs:
            self.store.bring(job.key)
            if self.storage is not None:
                self.storage.restore_curves(self.runs.job(job.key))
        files = {job.key: curve_file(self.store.path(job.key), job.job, spec) for job in self.plan.jobs}
        curves = {key: curve for key, file in files.items() if (curve := read_curve(file)) is not None}
        missing = [job for job in self.plan.jobs if job.key not in curves]
        folders = [self.store.at_nodes(job.key) for job in missing]
        data, wait_timeout_s = self._data_at_nodes(dataset), self.plan.config.execution.wait_timeout_s
        measured = measure_curves(missing, folders, data, spec, wait_timeout_s)
        for job, curve in zip(missing, measured, strict=True):
            write_json(files[job.key], curve.to_json())
            if self.storage is not None:
                self.storage.keep_curve(self.runs.job(job.key), files[job.key])
            curves[job.key] = curve
        return [curves[job.key] for job in self.plan.jobs]

    def require_complete(self, outcome: TrainingOutcome) -> list[JobResult]:
        """Results in the order of the plan. Raises RunStoppedError or ExpertsFailedError unless all are there."""
        jobs = self.plan.jobs
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
        for job in self.plan.jobs:
            self.store.bring(job.key)
        folders = [self.store.path(job.key) for job in self.plan.jobs]
        return gather(self.run, self.plan.config, dataset, folders)

    def figures(
        self,
        results: Sequence[JobResult],
        ensemble: Ensemble,
        dataset: PreparedDataset,
        listener: ProgressListener | None = None,
    ) -> list[Path]:
        """Pictures of what was learned, as PNG files in the run directory; the numbers of each beside it."""
        with progress("measuring", "experts", listener=listener) as advance:
            figures = training_figures(self.plan, self.runs, results, ensemble, dataset, advance)
        files = [self.run.figure(name) for name in figures]
        for file, (figure, table) in zip(files, figures.values(), strict=True):
            with new_file(file) as scratch:
                figure.savefig(scratch, dpi=FIGURE_DPI, format="png")
            write_text(self.run.figure_table(file.stem), table.to_csv())
        self.keep()
        return files

    def score(
        self,
        ensemble: Ensemble,
        protocol: ProtocolConfig,
        reference: PreparedDataset,
        *,
        default_metrics: tuple[Metric, ...] = (),
        on_cluster: bool = False,
        is_private: bool = False,
        listener: ProgressListener | None = None,
    ) -> Scored:
        """Sample on the connected cluster, measure, and keep the score with its protocol and a grid of samples.

        on_cluster: measure there too, with what the configuration asks for, unless no node but this one has the
        samples, since there is a storage; else here, with a progress bar. is_private: the cluster is this machine, so
        a few samples may be drawn here, which are the same.
        """
        execution = ensemble.config.execution
        resources, wait_timeout_s = execution.resources, execution.wait_timeout_s
        is_few = is_private and resources.device == "cpu" and self._are_few(protocol, ensemble)
        folder = self.ensemble_at_nodes(ensemble, shown=not on_cluster)

        def draw(ensemble: Ensemble, protocol: ProtocolConfig, samples: SampleStore) -> None:
            try:
                with progress("sampling", "images", shown=not on_cluster, listener=listener) as advance:
                    if is_few:
                        draw_here(ensemble, protocol, samples, advance)
                        return
                    generate_samples(
                        ensemble,
                        protocol,
                        samples,
                        resources=resources,
                        folder=folder,
                        wait_timeout_s=wait_timeout_s,
                        on_progress=advance,
                    )
            finally:  # one that is stopped goes on from the batches it has, on whichever machine
                self.keep()

        measure = partial(_measure_here, listener=listener, shown=not on_cluster)
        if on_cluster and self.storage is None:
            measure = partial(score_on_cluster, resources=resources, wait_timeout_s=wait_timeout_s)
        scored = score_ensemble(
            ensemble,
            protocol,
            reference,
            self.run,
            cache_dir=self.runs.cache,
            draw=draw,
            measure=partial(measure, default_metrics=default_metrics),
        )
        self.keep()
        return scored

    def _are_few(self, protocol: ProtocolConfig, ensemble: Ensemble) -> bool:
        if ensemble.index.latent is not None:  # what decodes them is larger than most networks
            return False
        num_calls = protocol.sampling.num_steps * (1 if protocol.sampling.guidance_scale == 1 else 2)
        return self.plan.macs * num_calls * protocol.num_samples <= FEW_SAMPLES_MACS


def _measure_here(
    samples: SampleStore,
    reference: PreparedDataset,
    protocol: ProtocolConfig,
    *,
    cache_dir: Path,
    default_metrics: tuple[Metric, ...],
    listener: ProgressListener | None,
    shown: bool,
) -> Score:
    with progress("scoring", "images", shown=shown, listener=listener) as advance:
        return evaluate_samples(
            samples,
            reference,
            protocol,
            cache_dir=cache_dir,
            device=default_device(),
            on_progress=advance,
            default_metrics=default_metrics,
        )

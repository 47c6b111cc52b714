"""The jobs of a configuration: what would run, and what it takes. Starts nothing, writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from workloads.config import AnyModel, DataSpec, Interval, Job, Resources, RunConfig
from workloads.config.data import AnyData
from workloads.sealed import content_hash

BACKWARD_FACTOR = 3
"""A training step costs about three forward passes: one forward, two backward."""


@dataclass(frozen=True)
class Request:
    """What a job asks of the cluster at once: so many workers, each with these resources."""

    resources: Resources
    num_workers: int = 1
    placement: str = "PACK"
    """How Ray lays the workers out over nodes: PACK, SPREAD or STRICT_PACK."""


@dataclass(frozen=True)
class PlannedJob:
    """One network to train and what it takes."""

    job: Job
    strategy: str
    num_parameters: int
    num_active_parameters: int
    """Parameters one denoising step uses."""

    macs: int
    """Multiply-adds of one forward pass of one image."""

    memory_bytes: int
    """Estimated peak memory of training."""

    resources: Resources

    num_workers: int = 1
    """How many of these resources the job takes at once."""

    placement: str = "PACK"
    """How they are laid out over nodes."""

    worker_counts: tuple[int, ...] = ()
    """How many workers may train it, the most first; empty: num_workers and no others."""

    def __post_init__(self) -> None:
        if self.worker_counts and self.num_workers not in self.worker_counts:
            raise ValueError(f"num_workers is {self.num_workers}, but worker_counts allow {self.worker_counts}")

    @property
    def request(self) -> Request:
        """What it asks of the cluster."""
        return Request(self.resources, self.num_workers, self.placement)

    @property
    def wanted_workers(self) -> int:
        """That train it where there is room."""
        return max(self.worker_counts, default=self.num_workers)

    @property
    def fewest_workers(self) -> int:
        """That it goes on with where there is no room for more."""
        return min(self.worker_counts, default=self.num_workers)

    def by(self, num_workers: int) -> "PlannedJob":
        """The same, trained by so many workers."""
        return self if num_workers == self.num_workers else replace(self, num_workers=num_workers)

    @property
    def workers_field(self) -> str:
        """The key of the run description that says how many workers there must be."""
        if self.fewest_workers < self.wanted_workers:
            return "min_workers"
        return "num_workers" if self.job.is_joint else "workers_per_expert"

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def key(self) -> str:
        return self.job.key

    @property
    def interval(self) -> Interval:
        return self.job.interval

    @property
    def expected_macs(self) -> int:
        """Of the whole training; the longest is started first."""
        return BACKWARD_FACTOR * self.macs * self.job.training.images

    @property
    def share(self) -> str:
        """What its training looks like, in a word: how specialised an expert is, or how a remix is made up."""
        return self.job.share

    def to_json(self) -> dict[str, Any]:
        """One entry of `rememe plan --json`; the key is null while the data is unknown."""
        return {
            "name": self.name,
            "strategy": self.strategy,
            "interval": list(self.interval),
            **self.job.summary,
            "model": self.job.model.kind,
            "num_parameters": self.num_parameters,
            "num_active_parameters": self.num_active_parameters,
            "macs": self.macs,
            "expected_training_macs": self.expected_macs,
            "memory_bytes": self.memory_bytes,
            "images": self.job.training.images,
            "num_workers": self.num_workers,
            "resources": self.resources.model_dump(mode="json"),
            "key": self.key if self.job.data.fingerprint else None,
        }


@dataclass(frozen=True)
class Plan:
    """The jobs of one configuration, clean end first."""

    config: RunConfig
    jobs: tuple[PlannedJob, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that can change the result: the jobs, the intervals, the protocol."""
        reference = self.config.reference
        return content_hash(
            {
                "jobs": [job.key for job in self.jobs],
                "cuts": self.config.intervals.cuts,
                "reference": None if reference is None else described(reference),
                # The same weights may lie elsewhere on the next machine.
                "protocol": self.config.evaluation.model_dump(mode="json", exclude={"inception_weights", "metrics"}),
            }
        )

    @cached_property
    def by_key(self) -> Mapping[str, PlannedJob]:
        """Distinct jobs: two intervals never share a key, but a map is what lookups want."""
        return {job.key: job for job in self.jobs}

    @property
    def num_parameters(self) -> int:
        """Of all its networks together."""
        return sum(job.num_parameters for job in self.jobs)

    @property
    def num_active_parameters(self) -> int:
        """That one denoising step uses, at most."""
        return max(job.num_active_parameters for job in self.jobs)

    @property
    def macs(self) -> int:
        """Of one denoising step of one image, at most."""
        return max(job.macs for job in self.jobs)

    @property
    def images(self) -> int:
        """That all its networks see together after their start."""
        return sum(job.job.training.images for job in self.jobs)

    @property
    def expected_macs(self) -> int:
        """Of all trainings."""
        return sum(job.expected_macs for job in self.jobs)

    def mean_over_timesteps(self, values: Sequence[float]) -> float:
        """Of a figure per job (or per expert), weighted by the timesteps it works at."""
        # A single network, or a remix as one job, works at all timesteps.
        if len(values) == 1:
            return float(values[0])
        intervals = self.config.intervals
        shares = [interval.num_timesteps / intervals.num_timesteps for interval in intervals]
        return float(sum(share * value for share, value in zip(shares, values, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """What `rememe plan --json` prints."""
        known = bool(self.jobs[0].job.data.fingerprint)
        return {
            "name": self.config.name,
            "fingerprint": self.fingerprint if known else None,
            "jobs": [job.to_json() for job in self.jobs],
            "num_parameters": self.num_parameters,
            "num_active_parameters": self.num_active_parameters,
            "expected_training_macs": self.expected_macs,
        }


def described(reference: AnyData) -> dict[str, Any]:
    """What the data of a score depends on. Fields that came later are left out as long as they change nothing."""
    fields = type(reference).model_fields
    later = {"missing_parts", *({"label_column", "sparse_labels"} if reference.kind == "folder" else ())}
    usual = {name for name in later & fields.keys() if getattr(reference, name) == fields[name].default}
    # held_out is always 0 here.
    return reference.model_dump(mode="json", exclude={"held_out", *usual})


def architecture_of(model: AnyModel) -> str:
    """Eight hex digits, equal for equal architectures."""
    return content_hash(model.model_dump(mode="json"))[:8]


def make_plan(config: RunConfig, data: DataSpec) -> Plan:
    """One job per interval, or one for a remix, costed on the meta device; equal architectures are costed once.

    Raises ConfigError if an architecture does not fit the image size or the initial weights.
    """
    # Here, for it brings torch: whoever only reads results or drives starts without.
    from workloads.training.jobs import jobs_of

    jobs = jobs_of(config, data)
    return Plan(config, tuple(_planned(job, config, config.expert_resources(i)) for i, job in enumerate(jobs)))


def _planned(job: Job, config: RunConfig, resources: Resources) -> PlannedJob:
    from workloads.training.trainers import trainer_of

    cost = trainer_of(job).cost()
    return PlannedJob(
        job=job,
        strategy=config.strategy.kind,
        num_parameters=cost.num_parameters,
        num_active_parameters=cost.num_active_parameters,
        macs=cost.macs,
        memory_bytes=cost.memory_bytes,
        resources=resources,
        num_workers=config.num_workers,
        placement=config.execution.placement,
        worker_counts=config.worker_counts,
    )

"""What is trained at once. Its key hashes everything that determines the weights, and nothing else."""

from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from workloads.config.base import StrictConfig, content_hash
from workloads.config.diffusion import DiffusionConfig
from workloads.config.intervals import Interval, IntervalTable
from workloads.config.models import AnyModel
from workloads.config.strategy import Remix
from workloads.config.training import TrainingConfig

TRAINING_PATH_VERSION = 1
"""Raise it when a change to workloads changes the weights a job yields; old store entries then stop matching."""


class DataSpec(StrictConfig):
    """The prepared data a job trains on, by content rather than by place."""

    fingerprint: str
    """Hash of the images and labels as prepared."""

    channels: int = Field(ge=1)
    """Channels of an image, or of a latent."""

    image_size: int = Field(ge=1)
    """Height and width the network sees."""

    num_classes: int | None = Field(None, ge=1)
    """Number of classes if the network is told the class, else None."""

    flip: bool = False
    """Random mirroring."""

    held_out: int = Field(0, ge=0)
    """Images kept out of training; part of a key unless it is 0."""


class InitialWeights(StrictConfig):
    """A file of weights to start from."""

    path: Path
    """Not part of a key: the content is what counts."""

    sha256: str


class _Job(StrictConfig):
    name: str
    """For people; not part of the key."""

    model: AnyModel
    diffusion: DiffusionConfig
    data: DataSpec
    training: TrainingConfig
    seed: int = 0
    initial: InitialWeights | None = None

    @cached_property
    def key(self) -> str:
        """Content key, 16 hex digits: equal keys mean equal weights (on the same kind of machine)."""
        return content_hash({"version": TRAINING_PATH_VERSION, **self._determinants()})[:16]

    def _determinants(self) -> dict[str, Any]:
        passing = {"checkpoint_every_images", "log_every_images"}
        determinants = self.model_dump(mode="json", exclude={"name": True, "training": passing, "initial": {"path"}})
        if self.data.held_out == 0:  # as before there was such a field, so that keys from then still match
            del determinants["data"]["held_out"]
        return determinants


class ExpertJob(_Job):
    """A network trained by itself, what it learns from, and how."""

    interval: Interval
    """Timesteps the expert owns."""

    specialisation: float = Field(1.0, ge=0, le=1)
    """Probability that a timestep is drawn from the interval rather than from the whole range."""


class RemixJob(_Job):
    """K bases and their coefficients, trained together by any number of workers."""

    remix: Remix

    @property
    def intervals(self) -> IntervalTable:
        """Which expert owns which timesteps."""
        num_timesteps = self.diffusion.num_timesteps
        return IntervalTable(self.remix.resolve_cuts(num_timesteps), num_timesteps)

    @property
    def interval(self) -> Interval:
        """All timesteps."""
        return Interval(0, self.diffusion.num_timesteps)


Job = ExpertJob | RemixJob

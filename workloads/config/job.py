"""One network to train. Its key hashes everything that determines the weights, and nothing else."""

from functools import cached_property
from typing import Any

from pydantic import Field

from workloads.config.base import StrictConfig, content_hash
from workloads.config.diffusion import DiffusionConfig
from workloads.config.intervals import Interval
from workloads.config.models import AnyModel
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


class ExpertJob(StrictConfig):
    """A network, what it learns from, and how."""

    name: str
    """For people; not part of the key."""

    interval: Interval
    """Timesteps the expert owns."""

    specialisation: float = Field(1.0, ge=0, le=1)
    """Probability that a timestep is drawn from the interval rather than from the whole range."""

    model: AnyModel
    diffusion: DiffusionConfig
    data: DataSpec
    training: TrainingConfig
    seed: int = 0

    @cached_property
    def key(self) -> str:
        """Content key, 16 hex digits: equal keys mean equal weights (on the same kind of machine)."""
        return content_hash({"version": TRAINING_PATH_VERSION, **self._determinants()})[:16]

    def _determinants(self) -> dict[str, Any]:
        return self.model_dump(
            mode="json", exclude={"name": True, "training": {"checkpoint_every_images", "log_every_images"}}
        )

    @property
    def covers_everything(self) -> bool:
        """Whether the expert owns all timesteps."""
        return self.interval == Interval(0, self.diffusion.num_timesteps)

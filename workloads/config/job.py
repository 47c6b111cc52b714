"""What is trained at once. Its key hashes everything that determines the weights, and nothing else."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from workloads.config.base import Flag, Real, StrictConfig, Whole
from workloads.config.diffusion import DiffusionConfig
from workloads.config.intervals import Interval
from workloads.config.models import AnyModel
from workloads.config.training import TrainingConfig
from workloads.sealed import content_hash

TRAINING_PATH_VERSION = 1
"""Raise it when a change to workloads changes the weights a job yields; old store entries then stop matching."""


class InputShape(TypedDict):
    """What a network is built for."""

    channels: int
    image_size: int
    num_classes: int | None


class DataSpec(StrictConfig):
    """The prepared data a job trains on, by content rather than by place."""

    fingerprint: str
    """Hash of the images and labels as prepared."""

    channels: Whole = Field(ge=1)
    """Channels of an image, or of a latent."""

    image_size: Whole = Field(ge=1)
    """Height and width the network sees."""

    num_classes: Whole | None = Field(None, ge=1)
    """Number of classes if the network is told the class, else None."""

    flip: Flag = False
    """Random mirroring."""

    held_out: Whole = Field(0, ge=0)
    """Images kept out of training; part of a key unless it is 0."""

    @property
    def input_shape(self) -> InputShape:
        """What a network for this data is built for."""
        return InputShape(channels=self.channels, image_size=self.image_size, num_classes=self.num_classes)


def _class_number_or_synset(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"n\d{8}", value):
        raise PydanticCustomError("class", "it must be the number of a class, or its synset, such as n01440764")
    return value


class InitialConversion(StrictConfig):
    """What may be made of weights of a network that is not quite this one."""

    classes: (
        tuple[Annotated[Annotated[Whole, Field(ge=0)] | str, BeforeValidator(_class_number_or_synset)], ...] | None
    ) = None
    """For each class of the data, in order, its number in the network to start from or, if that knows ImageNet's
    1,000 classes, its synset (n01440764); "no class" is kept."""

    variance: Flag = False
    """Leave out the outputs of a learned variance, or add some (as zeros)."""

    positions: Flag = False
    """Interpolate a DiT's position embeddings to the size of these images."""


class InitialWeights(StrictConfig):
    """A file of weights to start from."""

    path: Path
    """Not part of a key: the content is what counts."""

    sha256: str

    conversion: InitialConversion = InitialConversion()
    """Part of a key unless it changes nothing."""


class CommonFields(TypedDict):
    """What all jobs of a run have in common."""

    diffusion: DiffusionConfig
    data: DataSpec
    training: TrainingConfig
    seed: int
    initial: InitialWeights | None


class Job(StrictConfig, ABC):
    """What every kind of job holds and answers; a kind adds what it trains."""

    name: str
    """For people; not part of the key."""

    model: AnyModel
    diffusion: DiffusionConfig
    data: DataSpec
    training: TrainingConfig
    seed: Whole = 0
    initial: InitialWeights | None = None

    is_joint: ClassVar[bool] = False
    """Whether several workers may train it together."""

    if TYPE_CHECKING:  # a field of some kinds, which pydantic lets no property of a base class stand for

        @property
        def interval(self) -> Interval:
            """Timesteps that the job is in charge of."""

    @cached_property
    def key(self) -> str:
        """Content key, 16 hex digits: equal keys mean equal weights (on the same kind of machine)."""
        # 64 bits: any two of a million jobs share a key with a probability of 3e-8.
        return content_hash({"version": TRAINING_PATH_VERSION, **self._determinants()})[:16]

    @property
    def own_share(self) -> float:
        """Probability that a training timestep is drawn for the interval that owns it rather than from all."""
        return 1.0

    @property
    @abstractmethod
    def share(self) -> str:
        """What its training looks like, in a word."""

    @property
    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What tells it from other jobs of its kind, as plain JSON."""

    def _determinants(self) -> dict[str, Any]:
        # How often something is written changes no weights.
        passing = {"checkpoint_every_images", "log_every_images", "num_pictures"}
        determinants = self.model_dump(mode="json", exclude={"name": True, "training": passing, "initial": {"path"}})
        if self.data.held_out == 0:  # as before there was such a field, so that keys from then still match
            del determinants["data"]["held_out"]
        if self.initial is not None and self.initial.conversion == InitialConversion():
            del determinants["initial"]["conversion"]
        return determinants


class ExpertJob(Job):
    """A network trained by itself, what it learns from, and how."""

    interval: Interval
    """Timesteps the expert owns."""

    specialisation: Real = Field(1.0, ge=0, le=1)
    """Probability that a timestep is drawn from the interval rather than from the whole range."""

    @property
    def own_share(self) -> float:
        """The specialisation."""
        return self.specialisation

    @property
    def share(self) -> str:
        """How specialised the expert is."""
        return f"{self.specialisation:.0%}"

    @property
    def summary(self) -> dict[str, Any]:
        """How specialised the expert is."""
        return {"specialisation": self.specialisation}


def expert_job(raw: Mapping[str, Any]) -> ExpertJob:
    """An expert's job from its JSON, as training leaves it beside the weights."""
    return ExpertJob.model_validate(raw)

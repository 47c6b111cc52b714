"""What every kind of job has a trainer for: its cost, its start, its training, and its networks afterwards."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from workloads.config.intervals import Interval
from workloads.config.job import InitialWeights, Job
from workloads.training.loop import Hook, StepFn
from workloads.training.processes import Workers
from workloads.training.state import State

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class JobCost:
    """What a job takes; worked out without allocating anything."""

    num_parameters: int
    """Stored in the end."""

    num_active_parameters: int
    """Used by one denoising step."""

    macs: int
    """Multiply-adds of one forward pass of one image."""

    memory_bytes: int
    """Estimated peak memory of training, per worker."""


class Trainer(ABC, Generic[AnyJob]):
    """One job, as planning, training and measuring see it."""

    def __init__(self, job: AnyJob) -> None:
        self.job = job

    @abstractmethod
    def cost(self) -> JobCost:
        """What the job takes. ConfigError if its network cannot be built."""

    @abstractmethod
    def check_initial(self, initial: InitialWeights) -> None:
        """Raise ConfigError unless the job can start from these weights."""

    @abstractmethod
    def begin(self, device: torch.device, workers: Workers) -> tuple[State, StepFn]:
        """The state before the first step, and the step."""

    @abstractmethod
    def drawn_at(self, images_seen: int) -> str:
        """What else the step that starts there has drawn, for people: its timesteps, and whose they are."""

    def hooks(self, work_dir: Path, start_images: int) -> list[Hook]:  # noqa: ARG002
        """What else is to be kept of training, by the first worker; start_images were seen before."""
        return []

    @property
    def num_networks(self) -> int:
        """How many networks are judged in the end."""
        return 1

    @property
    def intervals(self) -> Sequence[Interval]:
        """Which of them denoises which timesteps, clean end first."""
        return [self.job.interval]

    @abstractmethod
    def trained_networks(self, work_dir: Path, device: torch.device) -> Iterator[tuple[Interval, nn.Module]]:
        """The finished job's networks and where each is measured, valid until the next is asked for."""

"""What training of a remix remembers between two steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from workloads.checkpoint import Checkpoint
from workloads.config.intervals import Interval
from workloads.config.job import DataSpec
from workloads.config.run import RunConfig
from workloads.config.strategy import RemixJob
from workloads.errors import CheckpointError
from workloads.files import new_directory
from workloads.models.growth import grow, growth_metadata, is_remix
from workloads.models.remix import REMIX_WEIGHTS, Bases, Mixer, build_mixer, mixed_names, remix_weights
from workloads.places import JobDir
from workloads.seeding import derive_seed
from workloads.training.ema import WeightAverage
from workloads.training.state import adamw, initial_model

# Axes: N experts, L layers (1 where all share coefficients), K bases.


def new_mixer(job: RemixJob, num_layers: int) -> Mixer:
    """Coefficients as they are before the first step, unless the remix grows from another."""
    # A seed of their own, so that they do not depend on how many numbers the network drew.
    torch.manual_seed(derive_seed("coefficients", job.seed))
    return build_mixer(job.remix, list(job.intervals), num_layers)


def initial_coefficients(config: RunConfig, data: DataSpec, num_layers: int) -> Tensor:
    """(N, K) coefficients of a run of a remix before its first step, averaged over layers.

    Not of one that grows from another remix.
    """
    (job,) = config.model_copy(update={"initial_weights": None, "initial_conversion": None}).jobs(data)
    return new_mixer(cast("RemixJob", job), num_layers).table().mean(1)


class RemixState:
    """Bases, shared parameters, coefficients, their averages and optimisers."""

    def __init__(self, job: RemixJob, device: torch.device) -> None:
        config, remix = job.training, job.remix
        self.job = job
        self.images_seen = 0
        self.model = initial_model(job, device)
        names = mixed_names(self.model, remix.mixed)
        self.bases = Bases(self.model, remix.num_bases, names)
        self.mixer = new_mixer(job, len(self.bases.layers)).to(device)
        if job.initial is not None and is_remix(job.initial.path):
            grow(job.initial.path, self.model, self.bases, self.mixer, job.intervals)
        mixed = set(names)
        parameters = dict(self.model.named_parameters())
        self.shared = [value for name, value in parameters.items() if value.requires_grad and name not in mixed]
        self.mixed = [parameters[name] for name in names]
        self.coefficients = list(self.mixer.parameters())
        # One optimiser each, so that the gradient of one basis at a time is enough.
        self.optimizers = [adamw(group, config) for group in self._groups() if group]
        self.average: WeightAverage | None = None
        if config.ema_halflife_images is not None:
            self.average = WeightAverage(
                self._trained(), halflife_images=config.ema_halflife_images, rampup=config.ema_rampup
            )

    def _groups(self) -> list[list[nn.Parameter]]:
        """What is updated together: the shared parameters, each basis by itself, the coefficients."""
        return [self.shared, *([vector] for vector in self.bases.vectors), self.coefficients]

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups() for parameter in group]

    @property
    def learning_rate(self) -> float:
        """Of the network."""
        rate: float = self.optimizers[0].param_groups[0]["lr"]
        return rate

    def checkpoint(self) -> Checkpoint:
        """A flat set of tensors from which `restore` continues bit for bit."""
        tensors: dict[str, Tensor] = {f"model.{index}": value for index, value in enumerate(self._trained())}
        if self.average is not None:
            tensors |= {f"average.{index}": value for index, value in enumerate(self.average.tensors)}
        for index, optimizer in enumerate(self.optimizers):
            for position, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{position}.{name}": value for name, value in moments.items()}
        return Checkpoint(self.images_seen, tensors)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises CheckpointError if it is of another remix."""
        tensors = checkpoint.tensors
        try:
            for index, parameter in enumerate(self._trained()):
                parameter.copy_(tensors[f"model.{index}"])
            if self.average is not None:
                for index, target in enumerate(self.average.tensors):
                    target.copy_(tensors[f"average.{index}"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another remix: {error}") from None
        for index, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, number, *rest = name.split(".")
                if kind == "optimizer" and int(number) == index:
                    moments.setdefault(int(rest[0]), {})[rest[1]] = tensor
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        self.images_seen = checkpoint.images_seen

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights, if any, in place; the end of training."""
        if self.average is not None:
            for parameter, average in zip(self._trained(), self.average.tensors, strict=True):
                parameter.copy_(average)

    def networks(self) -> Iterator[tuple[Interval, nn.Module]]:
        """Every expert's interval and network, each valid until the next is asked for."""
        table_NLK = self.mixer.table()
        for index, interval in enumerate(self.job.intervals):
            self.bases.mix(table_NLK[index])
            yield interval, self.model

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights, if any, are in place during the block."""
        return nullcontext() if self.average is None else self.average.in_place()

    def network_at(self, timestep: float) -> nn.Module:
        """The expert that owns the timestep, mixed."""
        self.bases.mix(self.mixer.table()[self.job.intervals.expert_of(timestep)])
        return self.model

    def save(self, work_dir: Path) -> Path:
        """Write work_dir/remix and return the file with the weights."""
        folder = JobDir(work_dir).remix
        with new_directory(folder) as scratch:
            model: Any = self.model
            model.save_config(scratch)
            tensors = remix_weights(self.model, self.bases, self.mixer.table())
            safetensors.torch.save_file(tensors, scratch / REMIX_WEIGHTS, growth_metadata(self.job.intervals))
        return folder / REMIX_WEIGHTS

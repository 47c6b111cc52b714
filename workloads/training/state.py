"""Everything a training run must remember between two steps, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workloads.checkpoint import Checkpoint
from workloads.config.intervals import Interval
from workloads.config.job import Job
from workloads.config.training import TrainingConfig
from workloads.errors import CheckpointError
from workloads.files import new_directory
from workloads.models.build import WEIGHTS, build_model
from workloads.models.growth import is_remix
from workloads.places import JobDir
from workloads.seeding import derive_seed
from workloads.training.ema import WeightAverage


class State(Protocol):
    """What the loop and its hooks need to know of what is trained."""

    images_seen: int

    @property
    def learning_rate(self) -> float:
        """The network's, now."""

    def checkpoint(self) -> Checkpoint:
        """A flat set of tensors from which `restore` continues bit for bit."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises CheckpointError if it is of something else."""

    def use_average(self) -> None:
        """Put the averaged weights, if any, in place; the end of training."""

    def networks(self) -> Iterator[tuple[Interval, nn.Module]]:
        """Networks and the timesteps they are to be judged at, each valid until the next is asked for."""

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights, if any, are in place during the block; training goes on as if nothing had been."""

    def network_at(self, timestep: float) -> nn.Module:
        """The network that denoises there, valid until another is asked for."""

    def save(self, work_dir: Path) -> Path:
        """Write what training yields, and return the file with the weights."""


def initial_model(job: Job, device: torch.device) -> nn.Module:
    """The job's network with its initial weights, ready for training."""
    interval = job.interval
    # Layers draw their weights from torch's own generator.
    torch.manual_seed(derive_seed("weights", job.seed, *interval))
    config = job.training
    model: Any = build_model(job.model, **job.data.input_shape)
    # A remix is put in place later, when there are bases to take it.
    if job.initial is not None and not is_remix(job.initial.path):
        from workloads.models.initial import load_initial

        load_initial(model, job.initial)
    if config.activation_checkpointing:
        model.enable_gradient_checkpointing()
    model.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    trained: nn.Module = model.train()
    return trained


def adamw(parameters: Iterable[Tensor], config: TrainingConfig) -> torch.optim.AdamW:
    """The optimiser of a run description."""
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def autocast(device: torch.device, config: TrainingConfig) -> AbstractContextManager[None]:
    """bf16 in the forward pass, if the run description says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def slow_precision(device: torch.device, config: TrainingConfig) -> str:
    """Why the precision of a run description is a slow one on a device, and what to do; empty if it is not known to be.

    A step of a DiT in bf16 took 0.64 times as long as in fp32 with AMX, 1.5 times with AVX-512's bf16 instructions
    alone, 3 times with AVX-512 and 36 times with AVX2 (one machine, held to less by ONEDNN_MAX_CPU_ISA).
    """
    if config.precision == "fp32":
        return ""
    if device.type == "cuda":
        lacks = "" if torch.cuda.is_bf16_supported(including_emulation=False) else "GPU has no instructions for bf16"
    else:
        features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
        is_known = features.get("architecture") == "x86_64"
        lacks = "processor has no AMX" if is_known and not features.get("amx_bf16") else ""
    return lacks and f"this {lacks}, so training.precision=bf16 makes steps longer, not shorter; use fp32 here"


class TrainState:
    """Network, averaged weights, optimiser and progress. Randomness needs no state: see workloads/seeding.py."""

    def __init__(self, model: nn.Module, config: TrainingConfig, num_timesteps: int) -> None:
        self.model = model
        self._num_timesteps = num_timesteps
        self.images_seen = 0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.parameters, config)
        self.average: WeightAverage | None = None
        if config.ema_halflife_images is not None:
            self.average = WeightAverage(
                self.parameters, halflife_images=config.ema_halflife_images, rampup=config.ema_rampup
            )

    def checkpoint(self) -> Checkpoint:
        """A flat set of tensors from which `restore` continues bit for bit."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{index}": tensor for index, tensor in enumerate(self.average.tensors)}
        for position, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{position}.{name}": tensor for name, tensor in moments.items()}
        return Checkpoint(self.images_seen, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises CheckpointError if it is of another network."""
        model: dict[str, Tensor] = {}
        optimizer: dict[int, dict[str, Any]] = {}
        averages: dict[int, Tensor] = {}
        for name, tensor in checkpoint.tensors.items():
            group, _, rest = name.partition(".")
            if group == "model":
                model[rest] = tensor
            elif group == "average":
                averages[int(rest)] = tensor
            else:
                position, _, moment = rest.partition(".")
                optimizer.setdefault(int(position), {})[moment] = tensor
        try:
            self.model.load_state_dict(model)
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint is of another network: {str(error).splitlines()[-1].strip()}"
            ) from None
        # Rates and decay are the run description's; a checkpoint holds moments alone.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        if self.average is not None:
            for index, target in enumerate(self.average.tensors):
                target.copy_(averages[index])
        self.images_seen = checkpoint.images_seen

    @property
    def learning_rate(self) -> float:
        """Now."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights, if any, into the network; the end of training."""
        if self.average is not None:
            for parameter, average in zip(self.parameters, self.average.tensors, strict=True):
                parameter.copy_(average)

    def networks(self) -> Iterator[tuple[Interval, nn.Module]]:
        """The one network, judged at all timesteps."""
        yield Interval(0, self._num_timesteps), self.model

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights, if any, are in place during the block."""
        return nullcontext() if self.average is None else self.average.in_place()

    def network_at(self, timestep: float) -> nn.Module:  # noqa: ARG002
        """The one network."""
        return self.model

    def save(self, work_dir: Path) -> Path:
        """Write work_dir/expert as save_pretrained does."""
        folder = JobDir(work_dir).expert
        with new_directory(folder) as scratch:
            # safetensors takes no other layout.
            model: Any = self.model.to(memory_format=torch.contiguous_format)
            model.save_pretrained(scratch)
        return folder / WEIGHTS

"""Everything a training run must remember between two steps, and nothing else."""

from typing import Any

import torch
from torch import Tensor, nn

from workloads.checkpoint import Checkpoint
from workloads.config.training import TrainingConfig
from workloads.errors import CheckpointError
from workloads.training.ema import WeightAverage


class TrainState:
    """Network, averaged weights, optimiser and progress. Randomness needs no state: see workloads/seeding.py."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self.model = model
        self.images_seen = 0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
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
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        if self.average is not None:
            for index, target in enumerate(self.average.tensors):
                target.copy_(averages[index])
        self.images_seen = checkpoint.images_seen

    @torch.no_grad()
    def load_average(self) -> None:
        """Put the averaged weights, if any, into the network; the end of training."""
        if self.average is not None:
            for parameter, average in zip(self.parameters, self.average.tensors, strict=True):
                parameter.copy_(average)

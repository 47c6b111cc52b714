"""Workers that train one thing together. A sum over workers is all they exchange."""

from collections.abc import Callable

import torch
from torch import Tensor

from workloads.config.training import TrainingConfig


class Workers:
    """This process among `world_size`; by default it is alone. Uses the process group torch.distributed has."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.bytes_summed = 0
        """How many bytes this worker has handed in to be summed."""

    @classmethod
    def current(cls) -> "Workers":
        """From the process group, if there is one."""
        if not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this one writes what all have in common."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all workers."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            self.bytes_summed += tensor.numel() * tensor.element_size()

    def any(self, flag: bool) -> bool:
        """Whether any worker says so; all must ask at the same time."""
        if self.world_size == 1:
            return flag
        # NCCL takes no tensors of the CPU.
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flags = torch.tensor([float(flag)], device=device)
        torch.distributed.all_reduce(flags)
        return bool(flags.item() > 0)


class SharedStop:
    """A request to stop that all workers see at the same step; asked once per step, it looks once per record."""

    def __init__(self, workers: Workers, asked: Callable[[], bool], config: TrainingConfig) -> None:
        self._workers, self._asked = workers, asked
        self._every_steps = max(1, config.log_every_images // config.batch_size)
        self._steps = 0

    def __call__(self) -> bool:
        self._steps += 1
        # Looking is an exchange between all workers and, for the first, a file on what may be a shared disk.
        if self._steps % self._every_steps:
            return False
        return self._workers.any(self._workers.is_first and self._asked())

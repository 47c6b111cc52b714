"""Workers that train one thing together. What the first begins with, then sums over workers are all they exchange."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from workloads.config.training import TrainingConfig
from workloads.errors import WorkersPartedError

T = TypeVar("T")


class Workers:
    """This process among `world_size`; by default it is alone. They meet in `group`; None: all that torch knows."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, group: "torch.distributed.ProcessGroup | None" = None
    ) -> None:
        self.rank, self.world_size, self.group = rank, world_size, group
        self.bytes_summed = 0
        """How many bytes this worker has handed in to be summed."""

    @classmethod
    def current(cls, group: "torch.distributed.ProcessGroup | None" = None) -> "Workers":
        """From the process group, if there is one."""
        if not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(group), torch.distributed.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this one writes what all have in common."""
        return self.rank == 0

    def part_of(self, batch_size: int) -> slice:
        """Which images of a batch are this worker's: the r-th part, for rank r."""
        num_local = batch_size // self.world_size
        return slice(self.rank * num_local, (self.rank + 1) * num_local)

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all workers."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, group=self.group)
            self.bytes_summed += tensor.numel() * tensor.element_size()

    def any(self, flag: bool) -> bool:
        """Whether any worker says so; all must ask at the same time."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self._device)
        torch.distributed.all_reduce(flags, group=self.group)
        return bool(flags.item() > 0)

    def from_first(self, value: T) -> T:
        """What the first worker gives, whatever the others do; all must ask at the same time."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of tensors by name, bit by bit, on the CPU."""
        if self.world_size == 1:
            return dict(tensors)
        found = {}
        layout = self.from_first([(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
        for name, shape, dtype in layout:
            mine = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            sent = mine.to(self._device).contiguous()
            # As bytes, for gloo does not know every type.
            torch.distributed.broadcast(sent.reshape(-1).view(torch.uint8), group=self.group, group_src=0)
            found[name] = sent.cpu()
        return found

    @property
    def _device(self) -> str:
        # NCCL takes no tensors of the CPU.
        return "cuda" if torch.distributed.get_backend(self.group) == "nccl" else "cpu"


def open_meeting(host: str) -> TCPStore:
    """Where workers find one another, at any free port of this node; lasts as long as the first worker holds it."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def join_meeting(host: str, port: int) -> TCPStore:
    """The same, as the other workers see it."""
    return TCPStore(host, port, is_master=False)


@contextmanager
def together(meeting: TCPStore, rank: int, world_size: int, *, device: str, host: str) -> Iterator[Workers]:
    """A process group for the block. WorkersPartedError if an exchange in it fails.

    device: "cuda" for NCCL, else gloo. host: this node's own address, as the others know it.
    """
    # gloo asks what the host's name resolves to, which on Debian is 127.0.1.1, and other nodes are not there.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_of(host)) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        backend = "nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=meeting, rank=rank, world_size=world_size)
        yield Workers.current()
    except RuntimeError as error:
        # gloo's errors have no class of their own.
        if type(error) is RuntimeError or isinstance(error, torch.distributed.DistError):
            raise WorkersPartedError(str(error).splitlines()[0]) from None
        raise
    finally:
        # Also after an error: the others, which wait for this one's gradients, then end too.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _interface_of(host: str) -> str | None:
    """The network interface with this IPv4 address, as Linux calls it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found[20:24]) == host:
                return name
    return None


_SIOCGIFADDR = 0x8915
"""Linux: the address of an interface."""


class SharedStop:
    """A request to stop, made to any of the workers, that all see at the same step.

    Asked once per step, it looks once per record.
    """

    def __init__(self, workers: Workers, asked: Callable[[], bool], config: TrainingConfig) -> None:
        self._workers, self._asked = workers, asked
        # Looking is an exchange between all workers.
        self._every_steps = max(1, config.log_every_images // config.batch_size) if workers.world_size > 1 else 1
        self._steps = 0

    def __call__(self) -> bool:
        self._steps += 1
        if self._steps % self._every_steps:
            return False
        return self._workers.any(self._asked())

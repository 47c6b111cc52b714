"""Which timesteps an expert trains on."""

import torch
from torch import Tensor

from workloads.config.intervals import Interval


def draw_timesteps(
    generator: torch.Generator, interval: Interval, specialisation: float, num_timesteps: int, batch_size: int
) -> Tensor:
    """int64 (B,): uniform on the interval with probability `specialisation`, otherwise uniform on [0, T).

    Soft interval assignment of MEME (arXiv:2306.04990): an expert near pure noise learns little from its own
    interval alone. Specialisation 1 is a hard interval.
    """
    device = generator.device
    own_B = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64) < specialisation
    inside_B = torch.randint(interval.lo, interval.hi, (batch_size,), generator=generator, device=device)
    anywhere_B = torch.randint(0, num_timesteps, (batch_size,), generator=generator, device=device)
    return torch.where(own_B, inside_B, anywhere_B)

"""Which timesteps an expert is trained on."""

import torch
from torch import Tensor

from workloads.config.intervals import Interval

# Axes: B batch.


def draw_timesteps(
    generator: torch.Generator, interval: Interval, specialisation: float, num_timesteps: int, batch_size: int
) -> Tensor:
    """int64 (B,) on the generator's device: from the interval with probability p, else from all of [0, T).

    Soft interval assignment (MEME, arXiv:2306.04990): near pure noise, the expert's own interval alone teaches
    little. The interval is part of the whole range, so the share of training inside it is p + (1 - p) |interval| / T.
    """
    device = generator.device
    # All three are drawn for every image, so that p changes none of the draws that follow.
    chance_B = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64)
    own_B = torch.randint(interval.lo, interval.hi, (batch_size,), generator=generator, device=device)
    any_B = torch.randint(0, num_timesteps, (batch_size,), generator=generator, device=device)
    return torch.where(chance_B < specialisation, own_B, any_B)

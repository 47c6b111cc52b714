"""Timesteps by how much signal is left, on the schedule that training and sampling share."""

import functools

import numpy as np

from workloads.config.diffusion import DiffusionConfig
from workloads.diffusion.process import DiffusionProcess

# Axes: T timesteps.

LARGEST_BELOW_1 = 1 - 2.0**-24
SMALLEST_ABOVE_0 = 2.0**-126
"""Of float32: where abar has been rounded to 1 or 0, its log-SNR would be infinite."""


@functools.cache
def log_snr_cuts(config: DiffusionConfig, num_intervals: int) -> tuple[float, ...]:
    """Interior cuts of [0, T - 1], rising and not rounded, between which log(abar / (1 - abar)) falls equally far.

    The spacing of DPM-Solver's steps (Lu et al. 2022, arXiv:2206.00927, Section 3). Between whole timesteps the
    log-SNR is taken as linear.
    """
    abar_T = DiffusionProcess(config).alphas_cumprod_T.double().numpy().clip(SMALLEST_ABOVE_0, LARGEST_BELOW_1)
    log_snr_T = np.log(abar_T) - np.log1p(-abar_T)
    levels = np.linspace(log_snr_T[0], log_snr_T[-1], num_intervals + 1)[1:-1]
    timesteps = np.arange(len(log_snr_T))
    return tuple(np.interp(levels, log_snr_T[::-1], timesteps[::-1]).tolist())  # np.interp wants rising abscissae

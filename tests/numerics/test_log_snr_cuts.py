"""Cuts of equal log-SNR against abar worked out in float64, and crossings found one timestep after the other."""

import math
import random

import numpy as np
import pytest

from orchestrator.search.space.context import Context
from orchestrator.search.space.laws import Boundaries
from orchestrator.search.space.sources import RandomSource
from workloads.config.diffusion import DiffusionConfig
from workloads.diffusion.log_snr import log_snr_cuts

SCHEDULES = [
    DiffusionConfig(schedule="linear"),
    DiffusionConfig(schedule="linear", num_timesteps=100, beta_start=1e-3, beta_end=0.2),
    DiffusionConfig(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195),
    DiffusionConfig(schedule="squaredcos_cap_v2"),
    DiffusionConfig(schedule="squaredcos_cap_v2", num_timesteps=250),
]
IDS = [f"{config.schedule}-{config.num_timesteps}" for config in SCHEDULES]


def log_snr(config: DiffusionConfig) -> np.ndarray:
    """(T,) in float64: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled), Nichol & Dhariwal 2021, Eq. 17."""
    if config.schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, config.num_timesteps)
    elif config.schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps) ** 2
    else:
        edges = np.cos((np.arange(config.num_timesteps + 1) / config.num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    abar = np.cumprod(1 - betas)
    return np.log(abar / (1 - abar))


def crossings(config: DiffusionConfig, num_intervals: int) -> list[float]:
    """Where a straight line between two timesteps reaches each level."""
    curve = log_snr(config)
    found = []
    for index in range(1, num_intervals):
        level = curve[0] + (curve[-1] - curve[0]) * index / num_intervals
        after = next(t for t in range(config.num_timesteps) if curve[t] <= level)
        found.append(after - (level - curve[after]) / (curve[after - 1] - curve[after]))
    return found


@pytest.mark.parametrize("num_intervals", [1, 2, 4, 7])
@pytest.mark.parametrize("config", SCHEDULES, ids=IDS)
def test_log_snr_falls_equally_far_in_every_interval(config: DiffusionConfig, num_intervals: int) -> None:
    # abar is float32 in training: log(1 - abar) is off by up to 6e-8 / 1e-4 near the clean image, where the curve
    # falls by more than 0.01 a timestep.
    np.testing.assert_allclose(log_snr_cuts(config, num_intervals), crossings(config, num_intervals), atol=0.1)


@pytest.mark.parametrize("config", SCHEDULES, ids=IDS)
def test_a_study_has_them_on_the_nearest_multiples_of_its_step(config: DiffusionConfig) -> None:
    law = Boundaries.model_validate({"boundaries": {"num_experts": 4, "law": "equal_log_snr", "step": 10}})
    context = Context({"diffusion": config.model_dump()})
    drawn = law.draw(RandomSource(random.Random(0)), "cuts", context)
    last = config.num_timesteps - 10  # the cosine schedule's last cut is nearer T, which is no cut
    nearest = [min(last, 10 * math.floor(cut / 10 + 0.5)) for cut in crossings(config, 4)]
    assert len(set(nearest)) == 3
    assert drawn == {"cuts": nearest}
    assert list(law.grid("cuts", context)) == [drawn]


def test_a_schedule_that_float32_rounds_to_no_noise_still_has_cuts() -> None:
    config = DiffusionConfig(beta_start=1e-9, beta_end=0.9, num_timesteps=1000)
    cuts = log_snr_cuts(config, 4)
    assert 0 < cuts[0] < cuts[1] < cuts[2] < 999

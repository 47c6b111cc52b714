"""Training timesteps against the law of soft interval assignment, by chi-square tests."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from workloads.config.intervals import Interval, IntervalTable, uniform_cuts
from workloads.diffusion.timesteps import draw_timesteps

NUM_TIMESTEPS = 1000
NUM_DRAWS = 100_000


def draw(interval: Interval, specialisation: float, seed: int = 0) -> np.ndarray:
    """Counts of each timestep."""
    generator = torch.Generator().manual_seed(seed)
    t_B = draw_timesteps(generator, interval, specialisation, NUM_TIMESTEPS, NUM_DRAWS)
    assert t_B.dtype == torch.int64
    return np.bincount(t_B.numpy(), minlength=NUM_TIMESTEPS)


def law(interval: Interval, specialisation: float) -> np.ndarray:
    """P(t) = p / |I| inside the interval, plus (1 - p) / T everywhere."""
    probability = np.full(NUM_TIMESTEPS, (1 - specialisation) / NUM_TIMESTEPS)
    probability[interval.lo : interval.hi] += specialisation / interval.num_timesteps
    return probability


def p_value(counts: np.ndarray, probability: np.ndarray) -> float:
    """Of the counts under the law; 0 if something impossible was drawn."""
    assert len(counts) == NUM_TIMESTEPS
    possible = probability > 0
    if counts[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    return float(chisquare(counts[possible], NUM_DRAWS * probability[possible]).pvalue)


CUTS = {f"{n} equal": uniform_cuts(n, NUM_TIMESTEPS) for n in (1, 4, 6, 7)} | {"uneven": (1, 38, 600, 999)}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("specialisation", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_timesteps_follow_the_law(cuts: tuple[int, ...], specialisation: float) -> None:
    for index, interval in enumerate(IntervalTable(cuts, NUM_TIMESTEPS)):
        counts = draw(interval, specialisation, seed=index)
        # 115 fixed draws: the smallest p-value of so many is about 1/115 when all is well.
        assert p_value(counts, law(interval, specialisation)) > 1e-4


@pytest.mark.parametrize(
    ("wrong_interval", "wrong_specialisation"),
    [(Interval(250, 500), 0.75), (Interval(251, 501), 0.8), (Interval(250, 501), 0.8), (Interval(0, 250), 0.8)],
)
def test_a_wrong_law_is_rejected(wrong_interval: Interval, wrong_specialisation: float) -> None:
    counts = draw(Interval(250, 500), 0.8)
    assert p_value(counts, law(Interval(250, 500), 0.8)) > 1e-4
    assert p_value(counts, law(wrong_interval, wrong_specialisation)) < 1e-6


def test_shares_inside_the_own_interval_are_those_of_meme() -> None:
    for index, (specialisation, share) in enumerate([(0.8, 0.85), (0.4, 0.55), (0.2, 0.4), (0.1, 0.325)]):
        interval = Interval(250 * index, 250 * index + 250)
        inside = draw(interval, specialisation)[interval.lo : interval.hi].sum() / NUM_DRAWS
        assert inside == pytest.approx(share, abs=0.006)  # four standard deviations of the mean of 100,000 draws


def test_the_same_generator_state_gives_the_same_timesteps() -> None:
    assert np.array_equal(draw(Interval(0, 250), 0.5, seed=3), draw(Interval(0, 250), 0.5, seed=3))
    assert not np.array_equal(draw(Interval(0, 250), 0.5, seed=3), draw(Interval(0, 250), 0.5, seed=4))

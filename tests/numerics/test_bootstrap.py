"""The bootstrap's standard error against what drawing again and again really gives."""

import math

import numpy as np
import pytest
import torch

from workloads.evaluation.bootstrap import bootstrap_stderr, weighted_statistics
from workloads.evaluation.features import Statistics, feature_statistics
from workloads.evaluation.score import frechet_distance, frechet_distance_to

NUM_SAMPLES = 800


def draw(rng: np.random.Generator, mean: list[float], root: list[list[float]]) -> torch.Tensor:
    normal = rng.standard_normal((NUM_SAMPLES, len(mean)))
    return torch.from_numpy((normal @ np.array(root).T + mean).astype(np.float32))


CASES = {
    "2-D": ([1.0, 0.3], [[1.5, 0.0], [0.5, 0.7]]),
    "3-D": ([1.0, 0.0, -0.5], [[1.5, 0.0, 0.0], [0.4, 0.8, 0.0], [0.1, 0.3, 1.2]]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_spread_of_fresh_draws(case: str) -> None:
    mean, root = CASES[case]
    width = len(mean)
    expected = Statistics(np.zeros(width, np.float32), np.eye(width))
    rng = np.random.default_rng(0)
    fresh = [frechet_distance(feature_statistics(draw(rng, mean, root)), expected) for _ in range(300)]
    truth = float(np.std(fresh, ddof=1))
    found = [
        bootstrap_stderr(draw(rng, mean, root), frechet_distance_to(expected), num_resamples=100) for _ in range(5)
    ]
    # 300 draws give their spread within 4 %, 5 x 100 resamples within 3 %, one sample's moments within some more.
    assert float(np.mean(found)) == pytest.approx(truth, rel=0.2)


def test_in_one_dimension_it_is_the_delta_method() -> None:
    """FD = (mu - mu0)^2 + (s - s0)^2, var(mean) = s^2 / N, var(s) = s^2 / (2 N) for a normal distribution."""
    features = draw(np.random.default_rng(1), [1.0], [[1.5]])
    mean, deviation = float(features.double().mean()), float(features.double().std())  # what the bootstrap knows
    variance = 4 * mean**2 * deviation**2 + 4 * (deviation - 1) ** 2 * deviation**2 / 2
    expected = Statistics(np.zeros(1, np.float32), np.eye(1))
    found = bootstrap_stderr(features, frechet_distance_to(expected), num_resamples=2000)
    assert found == pytest.approx(math.sqrt(variance / NUM_SAMPLES), rel=0.06)  # 2000 resamples give 1.6 %


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(2)
    values_ND, weights_N = rng.standard_normal((50, 4)), rng.integers(0, 4, 50)
    repeated = np.repeat(values_ND, weights_N, axis=0)
    found = weighted_statistics(values_ND, weights_N)
    np.testing.assert_allclose(found.mu, repeated.mean(0), atol=1e-6)  # the mean is kept in float32
    np.testing.assert_allclose(found.sigma, np.cov(repeated, rowvar=False), atol=1e-12)


def test_the_seed_decides() -> None:
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    expected = Statistics(np.zeros(3, np.float32), np.eye(3))
    first, again, other = (
        bootstrap_stderr(features, frechet_distance_to(expected), num_resamples=10, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_quicker_distance_is_the_same() -> None:
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, 12, 12))
    a, b = (Statistics(rng.normal(size=12).astype(np.float32), root @ root.T) for root in roots)
    assert frechet_distance_to(b)(a) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert frechet_distance_to(a)(a) == pytest.approx(0, abs=1e-6)

"""Frechet distances in closed form; their standard errors against fresh draws, the bootstrap and the delta method."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from workloads.evaluation.moments import (
    MetricValue,
    Statistics,
    feature_statistics,
    frechet_distance,
    frechet_estimate,
)


def blocks_of(features_ND: np.ndarray, size: int = 64) -> list[Tensor]:
    return list(torch.from_numpy(features_ND.astype(np.float32)).split(size))


def estimate(features_ND: np.ndarray, expected: Statistics) -> MetricValue:
    blocks = blocks_of(features_ND)
    return frechet_estimate(blocks, feature_statistics(blocks), expected)


def bootstrapped(features_ND: np.ndarray, expected: Statistics, num_resamples: int, rng: np.random.Generator) -> float:
    """The plain bootstrap (Efron 1979): draw again with replacement, measure again."""
    count = len(features_ND)
    again = [features_ND[rng.integers(0, count, count)] for _ in range(num_resamples)]
    distances = [
        frechet_distance(Statistics(one.mean(0), np.atleast_2d(np.cov(one, rowvar=False))), expected) for one in again
    ]
    return float(np.std(distances, ddof=1))


def drawer(width: int, number: int, change: float) -> tuple[Callable[[np.random.Generator], np.ndarray], Statistics]:
    """Draws of heavy tails about a Gaussian whose variances fall as those of features do."""
    variances = np.arange(1, width + 1) ** -1.0
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0]
    root = np.sqrt(variances)[:, None] * (np.eye(width) + change * turn)

    def draw(rng: np.random.Generator) -> np.ndarray:
        radii = np.sqrt(rng.gamma(4, 0.25, (number, 1)))
        return rng.normal(size=(number, width)) * radii @ root.T + 0.3 * change * np.sqrt(variances)

    return draw, Statistics(np.zeros(width), np.diag(variances))


@pytest.mark.parametrize(("width", "number", "change"), [(2, 800, 0.5), (16, 800, 0.5), (32, 800, 0.5)])
def test_the_error_is_the_spread_of_fresh_draws_and_that_of_the_bootstrap(
    width: int, number: int, change: float
) -> None:
    draw, expected = drawer(width, number, change)
    rng = np.random.default_rng(0)
    found = [estimate(draw(rng), expected) for _ in range(200)]
    truth = float(np.std([one.value for one in found], ddof=1))
    error = float(np.mean([one.stderr for one in found]))
    plain = float(np.mean([bootstrapped(draw(rng), expected, 50, rng) for _ in range(8)]))
    # 200 draws give their spread within 5 %, 8 x 50 resamples within 4 %.
    assert error == pytest.approx(truth, rel=0.2)
    assert error == pytest.approx(plain, rel=0.2)


def test_with_few_samples_it_is_too_wide_and_the_bootstrap_more_so() -> None:
    draw, expected = drawer(64, 160, change=0.3)
    rng = np.random.default_rng(0)
    found = [estimate(draw(rng), expected) for _ in range(60)]
    truth = float(np.std([one.value for one in found], ddof=1))
    error = float(np.mean([one.stderr for one in found]))
    plain = float(np.mean([bootstrapped(draw(rng), expected, 20, rng) for _ in range(5)]))
    assert truth < error < plain


def test_in_one_dimension_it_is_the_delta_method() -> None:
    """FD = (mu - mu0)^2 + (s - s0)^2: with d = x - mu, 2 (mu - mu0) d + (1 - s0 / s) (d^2 - s^2) of each sample."""
    features_N1 = np.random.default_rng(1).normal(1, 1.5, (800, 1)).astype(np.float32).astype(np.float64)
    mean, deviation = features_N1.mean(), features_N1.std(ddof=1)
    away = features_N1 - mean
    influence = 2 * mean * away + (1 - 1 / deviation) * (away**2 - deviation**2)
    found = estimate(features_N1, Statistics(np.zeros(1), np.eye(1)))
    assert found.value == pytest.approx(mean**2 + (deviation - 1) ** 2, rel=1e-12)
    assert found.stderr == pytest.approx(influence.std() / math.sqrt(800), rel=2e-3)


def test_statistics_are_numpys_whatever_the_blocks() -> None:
    features_ND = np.random.default_rng(2).normal(3, 1, (500, 6)).astype(np.float32)
    for size in (64, 499, 500):
        found = feature_statistics(blocks_of(features_ND, size))
        np.testing.assert_allclose(found.mu, features_ND.astype(np.float64).mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.sigma, np.cov(features_ND.astype(np.float64), rowvar=False), rtol=1e-11)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 8, 8))
    a, b = (Statistics(rng.normal(size=8), root @ root.T) for root in roots)
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    expected = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_it_does_not_matter_which_of_two_is_of_lower_rank() -> None:
    rng = np.random.default_rng(5)
    full, thin = rng.normal(size=(30, 30)), rng.normal(size=(30, 4))
    a, b = Statistics(rng.normal(size=30), full @ full.T), Statistics(rng.normal(size=30), thin @ thin.T)
    # The square roots of the eigenvalues of the product are the singular values of full^T thin; those that are 0 are
    # known to 1e-16 of the largest, and their roots to 1e-8.
    shared = np.linalg.svd(full.T @ thin, compute_uv=False).sum()
    expected = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)


def test_a_covariance_of_lower_rank_is_no_obstacle() -> None:
    """Fewer samples than features: the closed form holds, by another root, and the error is finite."""
    features_ND = np.random.default_rng(3).normal(size=(20, 50)).astype(np.float32)
    root = np.random.default_rng(4).normal(size=(50, 50)) / 7
    expected = Statistics(np.zeros(50), root @ root.T)
    centred = features_ND.astype(np.float64) - features_ND.astype(np.float64).mean(0)
    # Nonzero eigenvalues of a product are those of the factors the other way round.
    shared = np.sqrt(np.linalg.eigvalsh(centred @ expected.sigma @ centred.T / 19).clip(min=0)).sum()
    distance = np.sum(features_ND.astype(np.float64).mean(0) ** 2) + np.square(centred).sum() / 19
    found = estimate(features_ND, expected)
    assert found.value == pytest.approx(distance + np.trace(expected.sigma) - 2 * shared, rel=1e-6)
    assert 0 < found.stderr < found.value

"""Mean and covariance of features, the Frechet distance of two of them, and how far other samples would have moved it.

All in float64, in one order and by one thread, so that no bit depends on the number of cores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workloads.threads import one_thread

# Axes: N images, n images of a block, D features.

SMALLEST_SHARE = 1e-12
"""Of the largest eigenvalue; what is smaller is rounding."""


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D), divided by N - 1, of features."""

    mu: np.ndarray
    sigma: np.ndarray


class MetricValue(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


@one_thread()
def feature_statistics(blocks: Sequence[Tensor]) -> Statistics:
    """Of features (n, D) in blocks; each is read twice, and one is in memory at a time."""
    number, width = sum(len(block) for block in blocks), blocks[0].shape[1]
    mu_D = torch.zeros(width, dtype=torch.float64)
    for block_nD in blocks:
        mu_D += block_nD.double().sum(0) / number
    sigma_DD = torch.zeros(width, width, dtype=torch.float64)
    for block_nD in blocks:
        centred_nD = block_nD.double() - mu_D
        sigma_DD.addmm_(centred_nD.T, centred_nD, alpha=1 / (number - 1))
    return Statistics(mu_D.numpy(), sigma_DD.numpy())


@one_thread()
def frechet_distance(found: Statistics, expected: Statistics) -> float:
    """|mu_a - mu_b|^2 + Tr(sigma_a + sigma_b - 2 sqrt(sigma_a sigma_b)) (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

    By the eigenvalues of L^T sigma_a L, where L L^T = sigma_b: those of the product, from a symmetric matrix.
    """
    (mu_D, sigma_DD), (expected_mu_D, expected_DD) = _as_float64(found), _as_float64(expected)
    root_DD = _root(expected_DD)
    values_D = torch.linalg.eigvalsh(root_DD.T @ sigma_DD @ root_DD)
    return _distance(mu_D - expected_mu_D, sigma_DD, expected_DD, values_D)


def _distance(shift_D: Tensor, sigma_DD: Tensor, expected_DD: Tensor, values_D: Tensor) -> float:
    shared = values_D.clamp(min=0).sqrt().sum()
    return float(shift_D.square().sum() + sigma_DD.trace() + expected_DD.trace() - 2 * shared)


@one_thread()
def frechet_estimate(blocks: Sequence[Tensor], found: Statistics, expected: Statistics) -> MetricValue:
    """The distance of the features' statistics to the expected ones, with its standard error.

    That is the infinitesimal jackknife (Efron & Tibshirani 1993, Sec. 21.2), to which the bootstrap tends: the spread
    of what each sample contributes to first order. It takes one decomposition, a bootstrap one per resample. With few
    samples for that many features both are too wide, the bootstrap more so. The bias of the distance, which falls with
    N, is not in it: it is nearly the same for all that is compared.
    """
    transport, number, total = _Transport(found, expected), 0, 0.0
    for block_nD in blocks:
        influence_n = transport.influence(block_nD.double())
        number, total = number + len(block_nD), total + float(influence_n.square().sum())
    return MetricValue(transport.distance, (total / number / (number - 1)) ** 0.5)


class _Transport:
    """From one normal distribution to another; the distance is what that costs (Dowson & Landau 1982)."""

    def __init__(self, found: Statistics, expected: Statistics) -> None:
        self._mu_D, sigma_DD = _as_float64(found)
        expected_mu_D, expected_DD = _as_float64(expected)
        self._shift_D = self._mu_D - expected_mu_D
        root_DD = _root(expected_DD)
        values_D, vectors_DD = torch.linalg.eigh(root_DD.T @ sigma_DD @ root_DD)
        is_kept_D = values_D > SMALLEST_SHARE * values_D[-1]
        self._half_map_DD = root_DD @ vectors_DD[:, is_kept_D] * values_D[is_kept_D] ** -0.25
        self._mean_quadratic = sigma_DD.trace() - values_D[is_kept_D].sqrt().sum()
        self.distance = _distance(self._shift_D, sigma_DD, expected_DD, values_D)

    def influence(self, features_nD: Tensor) -> Tensor:
        """N times what each of N samples contributes to the distance, to first order: (n,), with mean 0.

        The derivative by the mean is 2 (mu_a - mu_b), that by the covariance the unit matrix less the map from a to b,
        which is half_map half_map^T.
        """
        centred_nD = features_nD - self._mu_D
        quadratic_n = centred_nD.square().sum(1) - (centred_nD @ self._half_map_DD).square().sum(1)
        influence_n: Tensor = 2 * centred_nD @ self._shift_D + quadratic_n - self._mean_quadratic
        return influence_n


def _root(sigma_DD: Tensor) -> Tensor:
    """A matrix whose product with its transpose is this; any will do. Cholesky's takes a fortieth of the time."""
    root_DD: Tensor
    root_DD, failed_at = torch.linalg.cholesky_ex(sigma_DD)
    if failed_at:  # of lower rank
        values_D, vectors_DD = torch.linalg.eigh(sigma_DD)
        root_DD = vectors_DD * values_D.clamp(min=0).sqrt()
    return root_DD


def _as_float64(statistics: Statistics) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(statistics.mu).double(), torch.from_numpy(statistics.sigma).double()

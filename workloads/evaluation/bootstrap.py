"""How far a score would move if other samples had been drawn."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from workloads.evaluation.features import Statistics

# Axes: N samples, D features.

NUM_RESAMPLES, NUM_RESAMPLES_WIDE = 100, 20
"""Each takes an eigen-decomposition, which for 2048 features takes seconds."""

WIDE = 256
"""More features than this count as many."""


def bootstrap_stderr(
    features_ND: Tensor,
    distance: Callable[[Statistics], float],
    *,
    num_resamples: int | None = None,
    seed: int = 0,
) -> float:
    """Standard error of distance(statistics of the features) over the draw of the N samples (Efron 1979).

    Resampling with replacement is a weight per sample, so statistics are weighted moments and nothing is copied. The
    bias of a Frechet distance, which falls with N, is not in it: it is nearly the same for all that is compared.
    """
    values_ND = features_ND.double().numpy()
    number, width = values_ND.shape
    count = num_resamples or (NUM_RESAMPLES if width <= WIDE else NUM_RESAMPLES_WIDE)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(count):
        weights_N = rng.multinomial(number, np.full(number, 1 / number))
        distances.append(distance(weighted_statistics(values_ND, weights_N)))
    return float(np.std(distances, ddof=1))


def weighted_statistics(values_ND: np.ndarray, weights_N: np.ndarray) -> Statistics:
    """Mean and covariance (divided by N - 1) of samples that count weights_N times, sum(weights_N) = N."""
    total = weights_N.sum()
    mean_D = weights_N @ values_ND / total
    centred_ND = values_ND - mean_D
    return Statistics(mean_D.astype(np.float32), (centred_ND * weights_N[:, None]).T @ centred_ND / (total - 1))

"""What is measured beside the Frechet distance, of the same samples, each with its standard error.

Errors are over the draw of the samples, the reference images being given: the spread of what each sample contributes to
first order (the infinitesimal jackknife, see moments.py), or of what leaving out groups in turn changes (the jackknife,
Efron & Stein 1981). All by one thread, so that no bit depends on the number of cores.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from workloads.evaluation.moments import MetricValue
from workloads.threads import one_thread

# Axes: N samples, M reference images, n images of a block, D features, K classes, S splits, G groups.

NUM_SPLITS, SHUFFLE_SEED = 10, 2020
"""Of the Inception Score, as in torch-fidelity."""

NUM_NEIGHBOURS = 3
"""Of precision and recall (arXiv:1904.06991)."""

NUM_GROUPS = 20

ROWS = 1000
"""Images whose distances to all others are in memory at once."""


@one_thread()
def inception_score(logits: Sequence[Tensor]) -> MetricValue:
    """exp of the mean KL between each image's classes and the split's, averaged over ten splits (arXiv:1606.03498).

    Of class scores (n, K) in blocks, one of which is in memory at a time.
    """
    number = sum(map(len, logits))
    num_splits = min(NUM_SPLITS, number)
    split_N = _splits(number, num_splits)
    sizes_S = torch.bincount(split_N).double()
    means_SK = torch.zeros(num_splits, logits[0].shape[1], dtype=torch.float64)
    information_S = torch.zeros(num_splits, dtype=torch.float64)
    for split_n, shares_nK, information_n in _shares(logits, split_N):
        means_SK.index_add_(0, split_n, shares_nK / sizes_S[split_n, None])
        information_S.index_add_(0, split_n, information_n / sizes_S[split_n])
    scores_S = (information_S - torch.xlogy(means_SK, means_SK).sum(1)).exp()
    logs_SK = means_SK.clamp(min=torch.finfo(torch.float64).tiny).log()
    centre_S = information_S - (means_SK * logs_SK).sum(1)
    squares_S = torch.zeros(num_splits, dtype=torch.float64)
    for split_n, shares_nK, information_n in _shares(logits, split_N):
        influence_n = information_n - (shares_nK * logs_SK[split_n]).sum(1) - centre_S[split_n]
        squares_S.index_add_(0, split_n, (scores_S[split_n] * influence_n).square())
    variances_S = squares_S / sizes_S / (sizes_S - 1).clamp(min=1)
    return MetricValue(float(scores_S.mean()), float(variances_S.sum().sqrt()) / num_splits)


def _splits(number: int, num_splits: int) -> Tensor:
    """Which split each image is in: int64 (N,)."""
    order_N = torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(number))
    split_N = torch.empty(number, dtype=torch.int64)
    for split, (lo, hi) in enumerate(pairwise(part * number // num_splits for part in range(num_splits + 1))):
        split_N[order_N[lo:hi]] = split
    return split_N


def _shares(logits: Sequence[Tensor], split_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each block the images' splits, the shares of their classes, and the sums of those times their logarithms."""
    done = 0
    for block_nK in logits:
        shares_nK = block_nK.double().softmax(1)
        yield split_N[done : done + len(block_nK)], shares_nK, torch.xlogy(shares_nK, shares_nK).sum(1)
        done += len(block_nK)


@one_thread()
def precision_recall(samples_ND: Tensor, reference_MD: Tensor) -> dict[str, MetricValue]:
    """Share of samples on the reference's manifold, and the reverse, by balls to the third neighbour."""
    found = prc_features_to_metric(
        samples_ND,
        reference_MD,
        prc_neighborhood=NUM_NEIGHBOURS,
        prc_batch_size=ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    precision, recall = float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])
    return {
        # A mean of independent yes and no.
        "precision": MetricValue(precision, (precision * (1 - precision) / len(samples_ND)) ** 0.5),
        "recall": MetricValue(recall, _recall_stderr(samples_ND, reference_MD)),
    }


def _recall_stderr(samples_ND: Tensor, reference_MD: Tensor) -> float:
    groups = _groups(len(samples_ND))
    radii_GN = torch.empty(len(groups), len(samples_ND))
    for rows_n in torch.split(torch.arange(len(samples_ND)), ROWS):
        distances_nN = torch.cdist(samples_ND[rows_n], samples_ND)
        for radii_N, group in zip(radii_GN, groups, strict=True):
            others_nN = distances_nN.index_fill(1, group, torch.inf)
            radii_N[rows_n] = others_nN.kthvalue(NUM_NEIGHBOURS + 1).values.float()
    for radii_N, group in zip(radii_GN, groups, strict=True):
        radii_N[group] = -1  # their balls are left out
    covered_G = torch.zeros(len(groups), dtype=torch.float64)
    for part_nD in torch.split(reference_MD, ROWS):
        distances_nN = torch.cdist(part_nD, samples_ND)
        for index, radii_N in enumerate(radii_GN):
            covered_G[index] += (distances_nN <= radii_N).any(1).sum()
    return _spread((covered_G / len(reference_MD)).tolist())


@one_thread()
def kernel_distance(samples_ND: Tensor, reference_MD: Tensor) -> MetricValue:
    """KID: the unbiased estimate of MMD^2 under the kernel (x.y / D + 1)^3 (arXiv:1801.01401, Sec. 3).

    Over all pairs at once, which is what the usual mean over random subsets estimates.
    """
    groups = _groups(len(samples_ND))
    parts = [samples_ND[group].double() for group in groups]
    references = torch.split(reference_MD.double(), ROWS)
    within_GG = np.array([[float(_kernel(one, other).sum()) for other in parts] for one in parts])
    within_GG -= np.diag([float(_kernel_of_self(part).sum()) for part in parts])
    across_G = np.array([sum(float(_kernel(part, other).sum()) for other in references) for part in parts])
    number = len(reference_MD)
    own = sum(float(_kernel(one, other).sum()) for one in references for other in references)
    own = (own - sum(float(_kernel_of_self(one).sum()) for one in references)) / number / (number - 1)
    sizes_G = np.array([len(group) for group in groups])

    def estimate(kept_G: np.ndarray) -> float:
        count = int(sizes_G[kept_G].sum())
        within = within_GG[np.ix_(kept_G, kept_G)].sum() / count / (count - 1)
        return float(within + own - 2 * across_G[kept_G].sum() / count / number)

    every = np.arange(len(groups))
    without = [estimate(np.delete(every, group)) for group in every]
    return MetricValue(estimate(every), _spread(without))


def _kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def _kernel_of_self(a_ND: Tensor) -> Tensor:
    return (a_ND.square().sum(1) / a_ND.shape[1] + 1) ** 3


def _groups(number: int) -> list[Tensor]:
    """Indices of the samples of each, two at least."""
    return list(torch.arange(number).tensor_split(min(NUM_GROUPS, number // 2)))


def _spread(without_G: Sequence[float]) -> float:
    count = len(without_G)
    return float(np.sqrt((count - 1) / count * np.sum((np.array(without_G) - np.mean(without_G)) ** 2)))

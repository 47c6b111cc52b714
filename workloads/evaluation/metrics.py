"""What is measured beside the Frechet distance, of the same samples, each with its standard error.

Errors are over the draw of the samples, the reference images being given: by the bootstrap, or, where resampling would
put samples on top of one another, by leaving out groups in turn (the jackknife, Efron & Stein 1981).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

# Axes: N samples, M reference images, D features, K classes, R resamples, G groups.

NUM_SPLITS = 10
"""Of the Inception Score."""

NUM_NEIGHBOURS = 3
"""Of precision and recall (arXiv:1904.06991)."""

NUM_RESAMPLES = 100
NUM_GROUPS = 20


class MetricValue(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


def inception_score(logits_NK: Tensor) -> MetricValue:
    """exp of the mean KL between each image's classes and the split's, averaged over ten splits (arXiv:1606.03498)."""
    # The seed is torch-fidelity's own.
    splits = min(NUM_SPLITS, len(logits_NK))
    value = isc_features_to_metric(logits_NK, splits=splits, shuffle=True, rng_seed=2020)[KEY_METRIC_ISC_MEAN]
    rng = np.random.default_rng(0)
    scores_SR = []
    for part in torch.from_numpy(rng.permutation(len(logits_NK))).chunk(splits):
        shares_NK = logits_NK[part].double().softmax(1)
        information_N = torch.xlogy(shares_NK, shares_NK).sum(1)
        weights_RN = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), NUM_RESAMPLES) / len(part)
        means_RK = torch.from_numpy(weights_RN) @ shares_NK
        scores_SR.append((torch.from_numpy(weights_RN) @ information_N - torch.xlogy(means_RK, means_RK).sum(1)).exp())
    return MetricValue(float(value), float(torch.stack(scores_SR).mean(0).std()))


def precision_recall(samples_ND: Tensor, reference_MD: Tensor) -> dict[str, MetricValue]:
    """Share of samples on the reference's manifold, and the reverse, by balls to the third neighbour."""
    found = prc_features_to_metric(
        samples_ND,
        reference_MD,
        prc_neighborhood=NUM_NEIGHBOURS,
        prc_batch_size=10_000,
        save_cpu_ram=False,
        verbose=False,
    )
    precision, recall = float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])
    return {
        # A mean of independent yes and no.
        "precision": MetricValue(precision, (precision * (1 - precision) / len(samples_ND)) ** 0.5),
        "recall": MetricValue(recall, _recall_stderr(samples_ND, reference_MD)),
    }


def _recall_stderr(samples_ND: Tensor, reference_MD: Tensor) -> float:
    between_NN, to_MN = torch.cdist(samples_ND, samples_ND), torch.cdist(reference_MD, samples_ND)

    def recall_of(kept: Tensor) -> float:
        nearest = between_NN[kept][:, kept].topk(NUM_NEIGHBOURS + 1, largest=False).values[:, -1]
        return float((to_MN[:, kept] <= nearest).any(1).double().mean())

    return _jackknife_stderr(recall_of, len(samples_ND))


def kernel_distance(samples_ND: Tensor, reference_MD: Tensor) -> MetricValue:
    """KID: the unbiased estimate of MMD^2 under the kernel (x.y / D + 1)^3 (arXiv:1801.01401, Sec. 3).

    Over all pairs at once, which is what the usual mean over random subsets estimates.
    """
    groups = np.array_split(np.arange(len(samples_ND)), _num_groups(len(samples_ND)))
    parts = [samples_ND[torch.from_numpy(group)].double() for group in groups]
    reference_MD = reference_MD.double()
    within_GG = np.array([[float(_kernel(one, other).sum()) for other in parts] for one in parts])
    within_GG -= np.diag([float(_kernel_of_self(part).sum()) for part in parts])
    across_G = np.array([float(_kernel(part, reference_MD).sum()) for part in parts])
    number = len(reference_MD)
    own = float(_kernel(reference_MD, reference_MD).sum() - _kernel_of_self(reference_MD).sum()) / number / (number - 1)
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


def _jackknife_stderr(statistic: Callable[[Tensor], float], number: int) -> float:
    """statistic(indices of the samples that are kept)."""
    groups = np.array_split(np.arange(number), _num_groups(number))
    return _spread([statistic(torch.from_numpy(np.setdiff1d(np.arange(number), group))) for group in groups])


def _num_groups(number: int) -> int:
    return min(NUM_GROUPS, number // 2)  # of two at least


def _spread(without_G: list[float]) -> float:
    count = len(without_G)
    return float(np.sqrt((count - 1) / count * np.sum((np.array(without_G) - np.mean(without_G)) ** 2)))

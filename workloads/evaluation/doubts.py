"""Why a score is not to be trusted, although it can be computed."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workloads.evaluation.extractors import FASHION_NAME, Extractor
from workloads.evaluation.features import ReferenceImages
from workloads.evaluation.moments import Statistics

# Axes: n samples of a block, D features.

SMALLEST_SHARE = 1e-6
"""Of the largest variance; what is smaller is the rounding of features in fp32."""

NUM_LOOKED_AT = 64
"""Reference images whose colours are compared."""


def doubts_about(
    features: Sequence[Tensor],
    found: Statistics,
    expected: Statistics,
    references: ReferenceImages,
    extractor: Extractor,
    *,
    are_expected_of: bool = True,
) -> list[str]:
    """A sentence for each reason; none where there is none. features: (n, D) in blocks; found: their statistics.

    are_expected_of: whether the expected statistics are those of the reference images.
    """
    number, width = sum(map(len, features)), features[0].shape[1]
    doubts = []
    counts = {"samples": number} | ({"reference images": len(references)} if are_expected_of else {})
    for what, count in counts.items():
        if count <= width:
            doubts.append(
                f"{count:,} {what} are too few for {width:,} features, whose covariance needs at least {width + 1:,}"
            )
    distinct = len({hashlib.sha256(row.data).digest() for block_nD in features for row in block_nD.numpy()})
    if 2 * distinct <= number:
        doubts.append(f"only {distinct:,} of {number:,} samples differ from one another")
    elif number > width:
        ours, theirs = _rank(found.sigma), _rank(expected.sigma)
        if 2 * ours < theirs:
            doubts.append(f"the samples' features vary in {ours:,} directions, the reference's in {theirs:,}")
    if extractor.name == FASHION_NAME and _is_coloured(references):
        doubts.append(f"{FASHION_NAME} knows grey images of clothes, and the reference is in colour")
    return doubts


def _rank(sigma: np.ndarray) -> int:
    values_D = np.linalg.eigvalsh(sigma)
    return int((values_D > SMALLEST_SHARE * values_D[-1]).sum())


def _is_coloured(references: ReferenceImages) -> bool:
    images = references.__getitems__(list(range(min(NUM_LOOKED_AT, len(references)))))
    return any(not torch.equal(image[0], image[1]) or not torch.equal(image[0], image[2]) for image in images)

"""From generated images to a score, through torch-fidelity (Heusel et al. 2017, arXiv:1706.08500, Eq. 6)."""

import math
from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError, DataError
from workloads.evaluation.bootstrap import bootstrap_stderr
from workloads.evaluation.doubts import doubts_about
from workloads.evaluation.extractors import Extractor, load_extractor
from workloads.evaluation.features import (
    FEATURE_BATCH,
    ImageSet,
    ReferenceImages,
    Statistics,
    extract_all,
    feature_statistics,
    reference_features,
    reference_statistics,
    statistics_path,
)
from workloads.evaluation.protocol import Score, comparable, describe_protocol, protocol_hash, require_comparable
from workloads.evaluation.samples import SampleStore
from workloads.progress import Progress

NUM_MANIFOLD_IMAGES = 10_000
"""Precision and recall compare at most this many samples with this many reference images."""

MANIFOLD_SEED = 0
"""Of the choice of those; data sets often have their images class by class."""

NUM_NEIGHBOURS = 3
"""Of precision and recall (arXiv:1904.06991)."""

__all__ = ["Score", "comparable", "evaluate_samples", "frechet_distance", "require_comparable"]


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + Tr(sigma_a + sigma_b - 2 sqrt(sigma_a sigma_b)), as torch-fidelity computes it."""
    return float(fid_statistics_to_metric(a._asdict(), b._asdict(), verbose=False)[KEY_METRIC_FID])


def evaluate_samples(
    samples: SampleStore | ImageSet,
    reference: PreparedDataset,
    protocol: ProtocolConfig,
    *,
    cache_dir: Path,
    device: str = "cpu",
    on_progress: Progress | None = None,
    with_others: bool = False,
    with_stderr: bool = False,
) -> Score:
    """Distance between the features of the protocol's samples and of the reference images.

    with_others: Inception Score, precision and recall as well (see other_scores). with_stderr: the standard error.

    The reference's statistics are kept in cache_dir. Raises ConfigError without the extractor's weights, DataError if
    samples are missing, differ in size from the reference, or the reference holds latents.
    """
    references = ReferenceImages(reference)
    images = samples.images(protocol) if isinstance(samples, SampleStore) else samples
    _check_images(images, references, protocol)
    extractor = load_extractor(protocol)
    is_cached = statistics_path(reference, extractor, cache_dir).is_file()
    counter = _Counter(on_progress, len(images) + (0 if is_cached else len(references)))
    expected = reference_statistics(reference, extractor, cache_dir=cache_dir, device=device, advance=counter.advance)
    features_ND, logits_NK = extract_all(images, extractor, device=device, advance=counter.advance)
    _check_features(features_ND, extractor)
    value = frechet_distance(feature_statistics(features_ND), expected)
    # Faulty builds of OpenBLAS have been seen to yield NaN of finite features.
    if not math.isfinite(value):
        raise DataError(
            f"the {extractor.score_name} of {len(images)} samples is {value}; NumPy's linear algebra is faulty"
        )
    others, others_protocol = {}, {}
    if with_others:
        reference_ND = reference_features(
            reference, extractor, NUM_MANIFOLD_IMAGES, seed=MANIFOLD_SEED, cache_dir=cache_dir, device=device
        )
        others = other_scores(features_ND[:NUM_MANIFOLD_IMAGES], logits_NK, reference_ND)
        others_protocol = {"num_reference_images": len(reference_ND), "reference_seed": MANIFOLD_SEED}
    doubts = doubts_about(features_ND, expected, references, extractor)
    stderr = bootstrap_stderr(features_ND, expected, frechet_distance) if with_stderr else None
    described = _described(extractor, reference, protocol)
    return Score(
        extractor.score_name,
        value,
        described,
        protocol_hash(described),
        protocol.num_samples,
        others,
        others_protocol,
        doubts,
        stderr,
    )


def other_scores(features_ND: Tensor, logits_NK: Tensor, reference_ND: Tensor) -> dict[str, float]:
    """Inception Score (arXiv:1606.03498) in ten splits; precision and recall (arXiv:1904.06991) with 3 neighbours.

    Without the first where the weights have no classifier, without the others where there are too few images.
    """
    # Splits, seed and neighbours are torch-fidelity's own.
    found = {}
    if torch.isfinite(logits_NK).all():
        score = isc_features_to_metric(logits_NK, splits=min(10, len(logits_NK)), shuffle=True, rng_seed=2020)
        found["inception_score"] = float(score[KEY_METRIC_ISC_MEAN])
    if min(len(features_ND), len(reference_ND)) > NUM_NEIGHBOURS:
        manifolds = prc_features_to_metric(
            features_ND,
            reference_ND,
            prc_neighborhood=NUM_NEIGHBOURS,
            prc_batch_size=10_000,
            save_cpu_ram=False,
            verbose=False,
        )
        found |= {
            "precision": float(manifolds[KEY_METRIC_PRECISION]),
            "recall": float(manifolds[KEY_METRIC_RECALL]),
        }
    return found


def _check_features(features_ND: Tensor, extractor: Extractor) -> None:
    wrong = (~torch.isfinite(features_ND)).any(1).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(features_ND)} samples, the first of them sample {wrong[0]}, have features of "
            f"{extractor.name} that are not finite; look at the samples, and at the extractor's weights"
        )


def _check_images(images: ImageSet, references: ReferenceImages, protocol: ProtocolConfig) -> None:
    if len(images) != protocol.num_samples:
        raise ConfigError(f"there are {len(images)} samples, but protocol {protocol.name} takes {protocol.num_samples}")
    found, expected = images[0].shape, references[0].shape
    if found != expected:
        raise DataError(
            f"the samples are {found[1]} x {found[2]} pixels and the reference {expected[1]} x {expected[2]}; "
            f"prepare the reference images at {found[1]} x {found[2]}, for resizing changes the score"
        )


def _described(extractor: Extractor, reference: PreparedDataset, protocol: ProtocolConfig) -> dict[str, Any]:
    return describe_protocol(
        protocol,
        score_name=extractor.score_name,
        extractor=extractor.identity | {"batch_size": FEATURE_BATCH},
        reference_fingerprint=reference.fingerprint,
        num_reference_images=reference.num_images,
        torch_fidelity_version=torch_fidelity.__version__,
    )


class _Counter:
    """Adds up images over several passes."""

    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0

    def advance(self, num_images: int) -> None:
        self.done = min(self.done + num_images, self.total)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

"""From generated images to a score."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset

from workloads.config.evaluation import Metric, ProtocolConfig
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError, DataError
from workloads.evaluation.blocks import FEATURE_BATCH, ImageSet, extracted, first
from workloads.evaluation.doubts import doubts_about
from workloads.evaluation.extractors import EXTRACTORS, NUM_SPATIAL_FEATURES, Extractor, check_extractor, load_extractor
from workloads.evaluation.features import (
    ReferenceImages,
    drawn_features,
    reference_statistics,
    statistics_path,
)
from workloads.evaluation.metrics import NUM_NEIGHBOURS, inception_score, kernel_distance, precision_recall
from workloads.evaluation.moments import MetricValue, Statistics, feature_statistics, frechet_estimate
from workloads.evaluation.npz_images import NpzImages, has_images
from workloads.evaluation.protocol import Score, comparable, describe_protocol, protocol_hash, require_comparable
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.statistics_file import check_origin, read_statistics
from workloads.files import sha256_file
from workloads.places import CacheDir
from workloads.progress import Progress

NUM_MANIFOLD_IMAGES = 10_000
"""Precision, recall and KID compare at most this many samples with this many reference images."""

MANIFOLD_SEED = 0
"""Of the choice of those; data sets often have their images class by class."""

TABLE_METRICS: tuple[Metric, ...] = ("inception_score", "precision_recall")
"""Of a comparison that names none."""

__all__ = ["Score", "check_protocol", "comparable", "evaluate_samples", "require_comparable"]


def check_protocol(protocol: ProtocolConfig, image_size: int | None = None) -> None:
    """Raise ConfigError unless what the score is measured with is here and goes together; loads no network.

    image_size: of the samples, in pixels, as far as it is known.
    """
    check_extractor(protocol)
    if (path := protocol.reference_statistics) is not None:
        check_origin(path, protocol.resize, image_size)
        read_statistics(path, EXTRACTORS[protocol.extractor].num_features)
        if "sfid" in protocol.metrics:
            read_statistics(path, NUM_SPATIAL_FEATURES, spatial=True)


def evaluate_samples(
    samples: SampleStore | ImageSet,
    reference: PreparedDataset,
    protocol: ProtocolConfig,
    *,
    cache_dir: Path,
    device: str = "cpu",
    on_progress: Progress | None = None,
    default_metrics: tuple[Metric, ...] = (),
) -> Score:
    """Distance between the features of the protocol's samples and of the reference images, and the other metrics.

    default_metrics: those of a protocol that names none.

    The reference's statistics are kept in cache_dir. Raises ConfigError without the extractor's weights, DataError if
    samples are missing, differ in size from the reference, or the reference holds latents.
    """
    references = ReferenceImages(reference)
    images = samples.images(protocol) if isinstance(samples, SampleStore) else samples
    _check_images(images, references, protocol)
    extractor = load_extractor(protocol)
    source = _Reference(reference, protocol, cache_dir, device)
    counter = _Counter(on_progress, len(images) + (0 if source.is_known(extractor) else len(references)))
    expected = source.statistics(extractor, counter.advance)
    blocks, advance = CacheDir(cache_dir).blocks, counter.advance
    with extracted(images, extractor, blocks, device=device, advance=advance) as features:
        return _measured(features, extractor, source, expected, default_metrics)


def _measured(
    features: Mapping[str, Sequence[Tensor]],
    extractor: Extractor,
    source: "_Reference",
    expected: Statistics,
    default_metrics: tuple[Metric, ...],
) -> Score:
    own, protocol = features[extractor.layer], source.protocol
    _check_features(own, extractor)
    found = feature_statistics(own)
    distance = frechet_estimate(own, found, expected)
    # Faulty builds of linear algebra have been seen to yield NaN of finite features.
    if not math.isfinite(distance.value):
        raise DataError(
            f"the {extractor.score_name} of {protocol.num_samples} samples is {distance.value}; linear algebra is "
            "faulty on this machine, install another build of torch"
        )
    others, unavailable, others_protocol = _others(protocol.metrics or default_metrics, features, extractor, source)
    described = _described(extractor, source, protocol)
    are_expected_of = protocol.reference_statistics is None
    references = ReferenceImages(source.images)
    return Score(
        extractor.score_name,
        distance.value,
        described,
        protocol_hash(described),
        protocol.num_samples,
        {name: one.value for name, one in others.items()},
        others_protocol,
        doubts_about(own, found, expected, references, extractor, are_expected_of=are_expected_of),
        distance.stderr,
        {name: one.stderr for name, one in others.items()},
        unavailable,
    )


class _Reference(NamedTuple):
    """What samples are compared with."""

    images: PreparedDataset
    protocol: ProtocolConfig
    cache_dir: Path
    device: str

    def is_known(self, extractor: Extractor) -> bool:
        """Whether its statistics need no look at the images."""
        is_given = self.protocol.reference_statistics is not None
        return is_given or statistics_path(self.images.fingerprint, extractor, self.cache_dir).is_file()

    def statistics(self, extractor: Extractor, advance: Callable[[int], None] | None = None) -> Statistics:
        """Of the extractor's features."""
        if (path := self.protocol.reference_statistics) is not None:
            is_spatial = extractor.layer == extractor.spatial_layer
            width = NUM_SPATIAL_FEATURES if is_spatial else extractor.num_features
            return read_statistics(path, width, spatial=is_spatial)
        return reference_statistics(
            self.images, extractor, cache_dir=self.cache_dir, device=self.device, advance=advance
        )

    def features(self, extractor: Extractor) -> Tensor:
        """Of images drawn by MANIFOLD_SEED."""
        images: Dataset[Tensor] = ReferenceImages(self.images)
        fingerprint = self.images.fingerprint
        if (path := self.protocol.reference_statistics) is not None and has_images(path):
            images, fingerprint = NpzImages(path), self.fingerprint
        return drawn_features(
            images,
            fingerprint,
            extractor,
            NUM_MANIFOLD_IMAGES,
            seed=MANIFOLD_SEED,
            cache_dir=self.cache_dir,
            device=self.device,
        )

    @property
    def fingerprint(self) -> str:
        """Of the file, where statistics are given."""
        path = self.protocol.reference_statistics
        return self.images.fingerprint if path is None else sha256_file(path)


def _others(
    metrics: tuple[Metric, ...],
    features: Mapping[str, Sequence[Tensor]],
    extractor: Extractor,
    source: _Reference,
) -> tuple[dict[str, MetricValue], dict[str, str], dict[str, Any]]:
    """The metrics; why some cannot be had; and what they depend on besides the distance's protocol."""
    measured: dict[str, MetricValue] = {}
    unavailable: dict[str, str] = {}
    if "inception_score" in metrics:
        logits = [] if extractor.logits_layer is None else features[extractor.logits_layer]
        if logits and all(bool(torch.isfinite(block_nK).all()) for block_nK in logits):
            measured["inception_score"] = inception_score(logits)
        else:
            unavailable["inception_score"] = "these weights have no classifier"
    if "sfid" in metrics:
        assert extractor.spatial_layer is not None
        spatial = replace(extractor, layer=extractor.spatial_layer)
        own = features[spatial.layer]
        measured["sfid"] = frechet_estimate(own, feature_statistics(own), source.statistics(spatial))
    pairwise = [metric for metric in metrics if metric in {"precision_recall", "kid"}]
    if not pairwise:
        return measured, unavailable, {}
    reference_MD, samples_ND = source.features(extractor), first(features[extractor.layer], NUM_MANIFOLD_IMAGES)
    if min(len(samples_ND), len(reference_MD)) <= 2 * NUM_NEIGHBOURS:
        unavailable |= dict.fromkeys(pairwise, "there are too few images")
    else:
        measured |= precision_recall(samples_ND, reference_MD) if "precision_recall" in pairwise else {}
        measured |= {"kid": kernel_distance(samples_ND, reference_MD)} if "kid" in pairwise else {}
    return measured, unavailable, {"num_reference_images": len(reference_MD), "reference_seed": MANIFOLD_SEED}


def _check_features(features: Sequence[Tensor], extractor: Extractor) -> None:
    is_wrong_N = torch.cat([~torch.isfinite(block_nD).all(1) for block_nD in features])
    wrong = is_wrong_N.nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(is_wrong_N)} samples, the first of them sample {wrong[0]}, have features of "
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


def _described(extractor: Extractor, source: _Reference, protocol: ProtocolConfig) -> dict[str, Any]:
    return describe_protocol(
        protocol,
        score_name=extractor.score_name,
        extractor=extractor.identity | {"batch_size": FEATURE_BATCH},
        reference_fingerprint=source.fingerprint,
        num_reference_images=None if protocol.reference_statistics is not None else source.images.num_images,
        torch_fidelity_version=torch_fidelity.__version__,
    )


class _Counter:
    """Adds up images over several passes."""

    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0
        self.advance(0)

    def advance(self, num_images: int) -> None:
        self.done = min(self.done + num_images, self.total)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

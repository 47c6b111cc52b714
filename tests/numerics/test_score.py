"""Our score equals torch-fidelity's own and the closed form; statistics are computed once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity

from workloads.config.data import EmbeddedData
from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError, DataError
from workloads.evaluation import features
from workloads.evaluation.extractors import FASHION_NAME, load_extractor
from workloads.evaluation.features import (
    ReferenceImages,
    Statistics,
    TensorImages,
    extract_features,
    reference_features,
    reference_statistics,
)
from workloads.evaluation.samples import write_images
from workloads.evaluation.score import evaluate_samples, frechet_distance, other_scores

NUM_SAMPLES = 300


def protocol(**changes: object) -> ProtocolConfig:
    return ProtocolConfig.model_validate(
        {"name": "test", "extractor": "fashion-cnn", "num_samples": NUM_SAMPLES} | changes
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(channels=1), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(reference: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the statistics of the reference."""
    folder = tmp_path_factory.mktemp("cache")
    reference_statistics(reference, load_extractor(protocol()), cache_dir=folder)
    return folder


@pytest.fixture(scope="module")
def samples(reference: PreparedDataset) -> TensorImages:
    """Real images, spoilt by noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(reference.images(np.arange(NUM_SAMPLES))).float()
    noisy = images + 40 * torch.randn(images.shape, generator=generator)
    return TensorImages(noisy.clamp(0, 255).to(torch.uint8))


def test_the_score_is_torch_fidelitys_on_the_same_folders(
    reference: PreparedDataset, samples: TensorImages, cache: Path, tmp_path: Path
) -> None:
    ours = evaluate_samples(samples, reference, protocol(), cache_dir=cache)
    write_images(samples, tmp_path / "samples")
    write_images(ReferenceImages(reference), tmp_path / "reference")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "reference"),
        fid=True,
        feature_extractor=FASHION_NAME,
        feature_layer_fid="128",
        samples_find_deep=False,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours.name == "fd-fashion-cnn"
    assert ours.value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 8, 8))
    a, b = (Statistics(rng.normal(size=8), root @ root.T) for root in roots)
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    expected = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_statistics_are_numpys_and_computed_once(
    reference: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load_extractor(protocol())
    first = reference_statistics(reference, extractor, cache_dir=cache)
    features_ND = extract_features(ReferenceImages(reference), extractor).double().numpy()
    np.testing.assert_allclose(first.mu, features_ND.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.sigma, np.cov(features_ND, rowvar=False), rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(features, "extract_features", lambda *_, **__: pytest.fail("computed a second time"))
    again = reference_statistics(reference, extractor, cache_dir=cache)
    assert np.array_equal(first.mu, again.mu)
    assert np.array_equal(first.sigma, again.sigma)


def test_a_damaged_cache_is_computed_again(
    reference: PreparedDataset, samples: TensorImages, cache: Path, tmp_path: Path
) -> None:
    first = evaluate_samples(samples, reference, protocol(), cache_dir=cache)
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "statistics").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path) == first


def test_features_of_the_first_references_are_extracted_once(
    reference: PreparedDataset, samples: TensorImages, tmp_path: Path
) -> None:
    extractor = load_extractor(protocol())
    first_ND = reference_features(reference, extractor, 100, cache_dir=tmp_path)
    plain_ND = extract_features(TensorImages(torch.from_numpy(reference.images(np.arange(100)))), extractor)
    assert torch.equal(first_ND, plain_ND)
    (file,) = (tmp_path / "features").glob("*.safetensors")
    written_ns = file.stat().st_mtime_ns
    assert torch.equal(reference_features(reference, extractor, 100, cache_dir=tmp_path), first_ND)
    assert file.stat().st_mtime_ns == written_ns
    assert len(reference_features(reference, extractor, 10**9, cache_dir=tmp_path)) == reference.num_images
    others = evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path, with_others=True).others
    assert others == evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path, with_others=True).others


def test_real_images_score_better_than_spoilt_ones(
    reference: PreparedDataset, samples: TensorImages, cache: Path
) -> None:
    real = TensorImages(torch.from_numpy(reference.images(np.arange(5000, 5000 + NUM_SAMPLES))))
    clean, noisy = (
        evaluate_samples(images, reference, protocol(), cache_dir=cache).value for images in (real, samples)
    )
    assert clean < noisy / 3


def test_the_wrong_number_or_size_of_samples_is_refused(reference: PreparedDataset, tmp_path: Path) -> None:
    few = TensorImages(torch.zeros(5, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="there are 5 samples, but protocol test takes 300"):
        evaluate_samples(few, reference, protocol(), cache_dir=tmp_path)
    small = TensorImages(torch.zeros(NUM_SAMPLES, 1, 20, 20, dtype=torch.uint8))
    with pytest.raises(DataError, match="samples are 20 x 20 pixels and the reference 28 x 28"):
        evaluate_samples(small, reference, protocol(), cache_dir=tmp_path)


def test_inception_score_is_its_definition() -> None:
    """exp of the mean KL between each image's classes and the split's, averaged over ten splits."""
    generator = np.random.default_rng(0)
    logits_NK = generator.normal(size=(200, 10)) * 3
    found = other_scores(torch.zeros(200, 4), torch.from_numpy(logits_NK), torch.zeros(50, 4))["inception_score"]
    order = np.random.RandomState(2020).permutation(200)
    shares = np.exp(logits_NK[order]) / np.exp(logits_NK[order]).sum(1, keepdims=True)
    scores = []
    for split in np.split(shares, 10):
        mean = split.mean(0)
        scores.append(np.exp(np.mean([sum(p * np.log(p / mean)) for p in split])))
    assert found == pytest.approx(np.mean(scores), rel=1e-6)


def test_precision_and_recall_are_their_definitions() -> None:
    """Share of samples inside a ball around a real image that reaches its third neighbour, and the reverse."""
    generator = torch.Generator().manual_seed(0)
    samples_ND = torch.randn(40, 3, generator=generator, dtype=torch.float64) * 0.6
    real_ND = torch.randn(60, 3, generator=generator, dtype=torch.float64)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        radii = [sorted((centre - other).norm().item() for other in centres)[3] for centre in centres]
        inside = [
            any((point - centre).norm().item() <= radius for centre, radius in zip(centres, radii, strict=True))
            for point in points
        ]
        return sum(inside) / len(inside)

    found = other_scores(samples_ND, torch.randn(40, 10), real_ND)
    assert found["precision"] == pytest.approx(covered(samples_ND, real_ND))
    assert found["recall"] == pytest.approx(covered(real_ND, samples_ND))
    assert found["precision"] > found["recall"]

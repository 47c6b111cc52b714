"""Our score equals torch-fidelity's own and the closed form; statistics are computed once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from workloads.config import RunConfig
from workloads.config.data import EmbeddedData, FolderData, PreparedData
from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError, DataError
from workloads.evaluation import blocks, features, score
from workloads.evaluation.blocks import extracted
from workloads.evaluation.extractors import FASHION_NAME, load_extractor
from workloads.evaluation.features import ReferenceImages, TensorImages, drawn_features, reference_statistics
from workloads.evaluation.protocol import Score
from workloads.evaluation.samples import write_images
from workloads.evaluation.score import TABLE_METRICS, evaluate_samples
from workloads.pipeline import check_comparable, reference_data

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


def test_statistics_are_numpys_and_computed_once(
    reference: PreparedDataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load_extractor(protocol())
    first = reference_statistics(reference, extractor, cache_dir=cache)
    with extracted(ReferenceImages(reference), extractor, tmp_path) as found:
        features_ND = torch.cat(list(found[extractor.layer])).double().numpy()
    np.testing.assert_allclose(first.mu, features_ND.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(first.sigma, np.cov(features_ND, rowvar=False), rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(features, "extracted", lambda *_, **__: pytest.fail("computed a second time"))
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


def test_features_of_drawn_references_are_extracted_once(
    reference: PreparedDataset, samples: TensorImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "NUM_MANIFOLD_IMAGES", 1000)
    extractor = load_extractor(protocol())
    images = (ReferenceImages(reference), reference.fingerprint)
    drawn_ND = drawn_features(*images, extractor, 100, seed=0, cache_dir=tmp_path)
    whole_ND = drawn_features(*images, extractor, 10**9, seed=0, cache_dir=tmp_path)
    assert len(whole_ND) == reference.num_images
    # Each is one of the whole, from all over it: data sets have their images class by class.
    place_N = torch.cdist(drawn_ND, whole_ND).argmin(1)
    torch.testing.assert_close(whole_ND[place_N], drawn_ND)
    assert len(set(place_N.tolist())) == 100
    assert place_N.max() > 0.9 * reference.num_images
    assert not torch.equal(drawn_ND, drawn_features(*images, extractor, 100, seed=1, cache_dir=tmp_path))
    times_ns = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.safetensors")}
    assert torch.equal(drawn_features(*images, extractor, 100, seed=0, cache_dir=tmp_path), drawn_ND)
    assert times_ns == {file: file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.safetensors")}
    first, again = (
        evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path, default_metrics=TABLE_METRICS)
        for _ in range(2)
    )
    assert first == again
    assert first.others_protocol == {"num_reference_images": 1000, "reference_seed": 0}
    # What the others depend on is no part of the distance's protocol.
    assert first.protocol_hash == evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path).protocol_hash


def scored(images_NCHW: torch.Tensor, reference: PreparedDataset, cache: Path) -> Score:
    changed = protocol(num_samples=len(images_NCHW))
    return evaluate_samples(TensorImages(images_NCHW), reference, changed, cache_dir=cache)


def test_scores_that_are_not_to_be_trusted_say_why(reference: PreparedDataset, cache: Path, tmp_path: Path) -> None:
    real = torch.from_numpy(reference.images(np.arange(300)))
    assert scored(real, reference, cache).doubts == []
    assert scored(real, reference, cache).warning == ""
    (few,) = scored(real[:128], reference, cache).doubts
    assert few == "128 samples are too few for 128 features, whose covariance needs at least 129"
    assert scored(real[:129], reference, cache).doubts == []
    (alike,) = scored(real[:1].expand(300, -1, -1, -1), reference, cache).doubts
    assert alike == "only 1 of 300 samples differ from one another"
    plain = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(200, 1, 28, 28)
    (flat,) = scored(plain, reference, cache).doubts
    assert "the samples' features vary in" in flat
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "colour" / label).mkdir(parents=True)
        for number in range(70):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "colour" / label / f"{number}.png")
    coloured = ensure_prepared(FolderData(path=tmp_path / "colour", image_size=8), tmp_path / "data")
    doubts = scored(torch.from_numpy(coloured.images(np.arange(140))), coloured, tmp_path).doubts
    assert doubts == ["fashion-cnn knows grey images of clothes, and the reference is in colour"]


def test_features_that_are_not_finite_are_named(
    reference: PreparedDataset, samples: TensorImages, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache / "statistics", tmp_path / "statistics")
    original = blocks._features

    def spoilt(*arguments: Any) -> dict[str, np.ndarray]:
        found = original(*arguments)
        found["128"][7, 3] = float("nan")
        return found

    monkeypatch.setattr(blocks, "_features", spoilt)
    with pytest.raises(DataError, match="1 of 300 samples, the first of them sample 7, have features"):
        evaluate_samples(samples, reference, protocol(), cache_dir=tmp_path)


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


def test_a_reference_that_no_score_can_be_measured_with_is_refused_before_training(
    reference: PreparedDataset, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    one = {"kind": "folder", "path": str(tmp_path / "one"), "image_size": 20}
    raw = {"name": "tiny", "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2}}
    raw |= {"strategy": {"kind": "single"}, "training": {"images": 32, "batch_size": 16}}
    raw["evaluation"] = {"name": "demo", "sampling": {"guidance_scale": 1}}
    for sections, said in (({"data": one}, "data"), ({"data": {"kind": "embedded"}, "reference": one}, "reference")):
        with pytest.raises(DataError, match=f"{said} has 1 image, but a score"):
            reference_data(RunConfig.model_validate(raw | sections), tmp_path / "data")
    small = ensure_prepared(FolderData(path=tmp_path / "one", image_size=20), tmp_path / "data")
    prepared = ensure_prepared(PreparedData(path=small.path, image_size=20), tmp_path)
    with pytest.raises(DataError, match="reference's images are 20 x 20 pixels and the data's 28 x 28"):
        check_comparable(reference, prepared)

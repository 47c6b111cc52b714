"""Inception Score, precision, recall, KID and sFID against their definitions; their errors against fresh draws."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from workloads.config.data import EmbeddedData, FolderData
from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError
from workloads.evaluation import blocks
from workloads.evaluation import score as score_module
from workloads.evaluation.blocks import extracted
from workloads.evaluation.extractors import InceptionExtractor, clean_resized, load_extractor
from workloads.evaluation.features import TensorImages, reference_statistics
from workloads.evaluation.metrics import inception_score, kernel_distance, precision_recall
from workloads.evaluation.moments import MetricValue
from workloads.evaluation.npz_images import NpzImages
from workloads.evaluation.score import check_protocol, evaluate_samples
from workloads.evaluation.statistics_file import read_statistics


def draw(number: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(number, width, generator=generator, dtype=torch.float64)


def test_inception_score_is_its_definition() -> None:
    """exp of the mean KL between each image's classes and the split's, averaged over ten splits."""
    generator = np.random.default_rng(0)
    logits_NK = generator.normal(size=(200, 10)) * 3
    found = inception_score(torch.from_numpy(logits_NK).split(64)).value
    order = np.random.RandomState(2020).permutation(200)
    shares = np.exp(logits_NK[order]) / np.exp(logits_NK[order]).sum(1, keepdims=True)
    scores = []
    for split in np.split(shares, 10):
        mean = split.mean(0)
        scores.append(np.exp(np.mean([sum(p * np.log(p / mean)) for p in split])))
    assert found == pytest.approx(np.mean(scores), rel=1e-6)


def test_precision_and_recall_are_their_definitions() -> None:
    """Share of samples inside a ball around a real image that reaches its third neighbour, and the reverse."""
    samples_ND, real_ND = draw(40, 3, seed=0, scale=0.6), draw(60, 3, seed=1)

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = [sorted((centre - other).norm().item() for other in centres)[3] for centre in centres]
        inside = [
            any((point - centre).norm().item() <= radius for centre, radius in zip(centres, radii, strict=True))
            for point in points
        ]
        return sum(inside) / len(inside)

    found = precision_recall(samples_ND, real_ND)
    assert found["precision"].value == pytest.approx(covered(samples_ND, real_ND))
    assert found["recall"].value == pytest.approx(covered(real_ND, samples_ND))
    assert found["precision"].value > found["recall"].value


def test_kid_is_the_u_statistic() -> None:
    """Bińkowski et al. 2018, Eq. 4 with the kernel of Sec. 3, by a loop over all pairs; and torch-fidelity's."""
    x_ND, y_MD = draw(23, 4, seed=0), draw(31, 4, seed=1) + 0.4

    def mean_over(a: Tensor, b: Tensor, is_same: bool) -> float:
        values = [
            (float(one @ other) / 4 + 1) ** 3
            for i, one in enumerate(a)
            for j, other in enumerate(b)
            if not (is_same and i == j)
        ]
        return math.fsum(values) / len(values)

    expected = mean_over(x_ND, x_ND, True) + mean_over(y_MD, y_MD, True) - 2 * mean_over(x_ND, y_MD, False)
    assert kernel_distance(x_ND, y_MD).value == pytest.approx(expected, rel=1e-10)
    alike = draw(23, 4, seed=2) * 1.3
    theirs = kid_features_to_metric(x_ND, alike, kid_subsets=1, kid_subset_size=23, verbose=False)
    assert kernel_distance(x_ND, alike).value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)


REAL = draw(300, 3, seed=99)
CASES: dict[str, Callable[[int], MetricValue]] = {
    "inception_score": lambda seed: inception_score([draw(300, 5, seed, scale=2)]),
    "precision": lambda seed: precision_recall(draw(200, 3, seed, scale=1.2), REAL)["precision"],
    "recall": lambda seed: precision_recall(draw(200, 3, seed, scale=0.8), REAL)["recall"],
    "kid": lambda seed: kernel_distance(draw(200, 3, seed, scale=1.2) + 0.2, REAL),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_are_the_spread_of_fresh_draws(name: str) -> None:
    found = [CASES[name](seed) for seed in range(60)]
    truth = np.std([one.value for one in found], ddof=1)
    # 60 draws give their spread within 10 %; balls that overlap make the error of recall a rough one.
    assert np.mean([one.stderr for one in found]) == pytest.approx(truth, rel=0.5 if name == "recall" else 0.3)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(channels=1), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def protocol(**changes: object) -> ProtocolConfig:
    return ProtocolConfig.model_validate({"name": "test", "extractor": "fashion-cnn", "num_samples": 300} | changes)


def test_a_protocol_names_its_metrics_and_each_has_an_error(
    reference: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "NUM_MANIFOLD_IMAGES", 1000)
    samples = TensorImages(torch.from_numpy(reference.images(np.arange(300))))
    plain = evaluate_samples(samples, reference, protocol(), cache_dir=cache)
    metrics = ("inception_score", "precision_recall", "kid")
    score = evaluate_samples(samples, reference, protocol(metrics=metrics), cache_dir=cache)
    assert score.others.keys() == score.others_stderr.keys() == {"inception_score", "precision", "recall", "kid"}
    assert score.others["precision"] > 0.5  # they are real images
    assert abs(score.others["kid"]) < 4 * score.others_stderr["kid"]
    assert (score.value, score.stderr, score.protocol_hash) == (plain.value, plain.stderr, plain.protocol_hash)
    assert score.stderr is not None
    assert 0 < score.stderr < score.value
    assert plain.others == {}


def test_metrics_that_cannot_be_had_say_why(
    reference: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "NUM_MANIFOLD_IMAGES", 500)

    original = blocks._features

    def without_classifier(*arguments: Any) -> dict[str, np.ndarray]:
        found = original(*arguments)
        return found | {"logits": np.full_like(found["logits"], np.nan)}

    monkeypatch.setattr(blocks, "_features", without_classifier)
    samples = TensorImages(torch.from_numpy(reference.images(np.arange(6))))
    asked = protocol(metrics=("inception_score", "precision_recall", "kid"), num_samples=6)
    score = evaluate_samples(samples, reference, asked, cache_dir=cache)
    assert score.others == {}
    assert score.unavailable["inception_score"] == "these weights have no classifier"
    assert score.unavailable["kid"] == "there are too few images"
    assert "inception_score not available: these weights have no classifier" in score.other_words


def write_few(folder: Path) -> FolderData:
    for number in range(4):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 60 * number).save(folder / "a" / f"{number}.png")
    return FolderData(path=folder, image_size=28, channels=1)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_statistics_from_a_file_give_the_score_of_the_images(
    reference: PreparedDataset, cache: Path, tmp_path: Path, suffix: str
) -> None:
    own = reference_statistics(reference, load_extractor(protocol()), cache_dir=cache)
    file = tmp_path / f"statistics{suffix}"
    if suffix == ".npz":
        np.savez(file, mu=own.mu.astype(np.float64), sigma=own.sigma)
    else:
        torch.save({"mu": own.mu, "sigma": own.sigma}, file)  # as torch-fidelity's cache does
    samples = TensorImages(torch.from_numpy(reference.images(np.arange(300))))
    ours = evaluate_samples(samples, reference, protocol(), cache_dir=cache)
    theirs = evaluate_samples(samples, reference, protocol(reference_statistics=file), cache_dir=tmp_path)
    assert theirs.value == pytest.approx(ours.value, rel=1e-6)
    few = ensure_prepared(write_few(tmp_path / "few"), tmp_path / "data")  # images are then only for other metrics
    assert evaluate_samples(samples, few, protocol(reference_statistics=file), cache_dir=tmp_path).doubts == []
    assert theirs.protocol_hash != ours.protocol_hash
    assert not (tmp_path / "statistics").exists()  # the images were not looked at


def test_other_statistics_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "statistics.npz"
    for arrays, said in (
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "has 128 features; they are of another network"),
        ({"mean": np.zeros(128)}, "holds no mu, but mean"),
        ({"mu": np.zeros(128), "sigma": np.full((128, 128), np.nan)}, "the file is damaged"),
        ({"mu": np.array([print]), "sigma": np.eye(128)}, "cannot be read"),
    ):
        np.savez(file, **arrays)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=said):
            check_protocol(protocol(reference_statistics=file))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_protocol(protocol(reference_statistics=tmp_path / "absent.npz"))
    torch.save({"mu": print}, tmp_path / "code.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_statistics(tmp_path / "code.pt", 128)
    for changes in ({"metrics": ["sfid"]}, {"resize": "clean"}):
        with pytest.raises(ValueError, match="leave it out"):
            protocol(**changes)


def test_images_in_the_file_are_what_precision_recall_and_kid_compare_with(
    reference: PreparedDataset, cache: Path, tmp_path: Path
) -> None:
    own = reference_statistics(reference, load_extractor(protocol()), cache_dir=cache)
    real_NCHW = reference.images(np.arange(1000, 1150)).repeat(3, axis=1)
    samples = TensorImages(torch.from_numpy(reference.images(np.arange(300))))
    asked = protocol(metrics=("precision_recall", "kid"))
    found = []
    for name, save in (("plain.npz", np.savez), ("small.npz", np.savez_compressed)):
        save(tmp_path / name, arr_0=real_NCHW.transpose(0, 2, 3, 1), mu=own.mu, sigma=own.sigma)  # type: ignore[arg-type]
        changed = asked.model_copy(update={"reference_statistics": tmp_path / name})
        check_protocol(changed, 28)
        found.append(evaluate_samples(samples, reference, changed, cache_dir=tmp_path))
    with extracted(TensorImages(torch.from_numpy(real_NCHW)), load_extractor(protocol()), tmp_path) as features:
        real_ND = torch.cat(list(features["128"]))
    with extracted(samples, load_extractor(protocol()), tmp_path) as features:
        samples_ND = torch.cat(list(features["128"]))
    for score in found:
        assert score.others_protocol["num_reference_images"] == 150
        assert score.others["kid"] == kernel_distance(samples_ND, real_ND).value
        assert score.others["recall"] == precision_recall(samples_ND, real_ND)["recall"].value
        assert score.doubts == []
    images = NpzImages(tmp_path / "small.npz")
    assert all(np.array_equal(images[index], real_NCHW[index]) for index in (3, 149, 0))


def test_statistics_that_tell_of_another_size_or_resizing_are_refused(tmp_path: Path) -> None:
    rest = {"mu": np.zeros(128), "sigma": np.eye(128)}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 32, 32, 3), np.uint8), **rest)  # type: ignore[arg-type]
    np.savez(tmp_path / "ffhq_clean_trainval70k_256.npz", **rest)  # type: ignore[arg-type]
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 32, 32, 3)), **rest)  # type: ignore[arg-type]
    check_protocol(protocol(reference_statistics=tmp_path / "adm.npz"), 32)
    for name, size, said in (
        ("adm.npz", 64, "images of 32 x 32, but the samples are of 64 x 64"),
        ("ffhq_clean_trainval70k_256.npz", 256, "resized by clean, but evaluation.resize is tensorflow"),
        ("floats.npz", 32, "arr_0 of float64"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_protocol(protocol(reference_statistics=tmp_path / name), size)


def test_clean_resizing_is_pillows() -> None:
    """As clean-fid does it: each channel as an image of floating-point numbers, bicubic, clipped and not rounded."""
    for side in (32, 256, 400):
        pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        channels = [
            Image.fromarray(pixels[:, :, channel].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        expected = np.stack([np.asarray(channel).clip(0, 255) for channel in channels])
        found = clean_resized(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0] * 128 + 128
        # In a byte's steps.
        assert np.abs(found.numpy() - expected).max() < 0.01


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an Inception network that has learnt nothing: its parts can be looked at without the real ones."""
    from torch_fidelity import FeatureExtractorInceptionV3
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    original, theirs.load_state_dict_from_url = theirs.load_state_dict_from_url, None
    try:
        load, FeatureExtractorInceptionV3.load_state_dict = FeatureExtractorInceptionV3.load_state_dict, lambda *_: None
        torch.save({}, file)
        network = FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path=file)
        FeatureExtractorInceptionV3.load_state_dict = load
    finally:
        theirs.load_state_dict_from_url = original
    torch.save(network.state_dict(), file)
    return file


def test_inception_also_yields_spatial_features(weights: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = ["2048", "logits_unbiased"]
    both, alone, clean = (
        InceptionExtractor("any", layers, clean=is_clean, feature_extractor_weights_path=weights)
        for layers, is_clean in ((["spatial", *names], False), (names, False), (names, True))
    )
    maps: list[Tensor] = []
    both.Mixed_6d.register_forward_hook(lambda _, inputs, output: maps.append(output))
    spatial, *others = both(images)
    for found, expected in zip(others, alone(images), strict=True):
        assert torch.equal(found, expected)
    assert spatial.shape == (2, 2023)
    # The block begins with that branch: its first 7 of 768 channels.
    assert torch.equal(spatial.view(2, 17, 17, 7), maps[0][:, :7].permute(0, 2, 3, 1))
    assert not torch.allclose(clean(images)[0], others[0])
    large = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(clean(large)[0], alone(large)[0], rtol=1e-4, atol=1e-4)  # nothing to resize

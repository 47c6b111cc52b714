"""No bit of a metric depends on the threads or batches it was made with, and a measurement that is killed goes on."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from damaging import damage
from PIL import Image
from torch import Tensor, nn

from workloads.config.data import FolderData
from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.evaluation import blocks
from workloads.evaluation.blocks import extracted, first
from workloads.evaluation.extractors import Extractor
from workloads.evaluation.features import TensorImages
from workloads.evaluation.generate import batch_indices
from workloads.evaluation.metrics import inception_score, kernel_distance, precision_recall
from workloads.evaluation.moments import feature_statistics, frechet_distance, frechet_estimate
from workloads.evaluation.samples import SampleStore
from workloads.evaluation.score import evaluate_samples

SIDE, WIDTH = 16, 2048


class Projection(nn.Module):
    """Wide enough that its sums are split among threads, where there are several."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(3 * SIDE**2, WIDTH, generator=generator))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = (images_BCHW.float().flatten(1) / 255) @ self.weights / SIDE
        return features_BD.relu(), features_BD[:, :1008]


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor("projection", Projection(), "wide", "logits", "0", "none", "fd-projection", WIDTH)


def images(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def threads() -> Iterator[list[int]]:
    before = torch.get_num_threads()
    yield [1, 2, 3]
    torch.set_num_threads(before)


def test_features_are_those_of_any_number_of_threads_and_of_images_beside_them(
    extractor: Extractor, tmp_path: Path, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, found = images(150), []
    for number in threads:
        torch.set_num_threads(number)
        with extracted(TensorImages(pixels), extractor, tmp_path) as features:
            found.append(torch.cat(list(features["wide"])))
        assert torch.get_num_threads() == number
    # Fewer images, smaller blocks: the last batch is another one, and is filled up.
    monkeypatch.setattr(blocks, "BLOCK_IMAGES", 64)
    with extracted(TensorImages(pixels[:130]), extractor, tmp_path) as features:
        fewer = torch.cat(list(features["wide"]))
    for other in found[1:]:
        assert torch.equal(found[0], other)
    assert torch.equal(found[0][:130], fewer)
    expected = (pixels.flatten(1).double() / 255) @ extractor.module.weights.double() / SIDE
    torch.testing.assert_close(found[0].double(), expected.detach().relu(), rtol=1e-4, atol=1e-4)


def test_metrics_are_those_of_any_number_of_threads(threads: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, others = (torch.randn(600, 512, generator=generator) for _ in range(2))
    found = []
    for number in threads:
        torch.set_num_threads(number)
        ours, theirs = feature_statistics(samples.split(100)), feature_statistics([others])
        found.append(
            [
                ours.mu.tobytes(),
                ours.sigma.tobytes(),
                frechet_distance(ours, theirs),
                frechet_estimate([samples], ours, theirs),
                inception_score(samples.split(100)),
                precision_recall(samples, others),
                kernel_distance(samples, others),
            ]
        )
    for other in found[1:]:
        assert other == found[0]


def write_images(folder: Path) -> FolderData:
    (folder / "a").mkdir(parents=True)
    for number, pixels_CHW in enumerate(images(140, seed=1)):
        Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(folder / "a" / f"{number:03}.png")
    return FolderData(path=folder, image_size=SIDE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("reference")
    return ensure_prepared(write_images(folder / "images"), folder / "data")


def test_metrics_are_those_of_any_batches_of_samples(reference: PreparedDataset, tmp_path: Path) -> None:
    pixels = images(150)
    found = []
    for batch_size in (1, 7, 64, 100, 150):
        protocol = ProtocolConfig(
            name="p",
            extractor="fashion-cnn",
            num_samples=150,
            batch_size=batch_size,
            metrics=("inception_score", "precision_recall", "kid"),
        )
        store = SampleStore(tmp_path / str(batch_size))
        for index, batch in enumerate(batch_indices(protocol)):
            store.write(index, pixels[batch.start : batch.stop])
        score = asdict(evaluate_samples(store, reference, protocol, cache_dir=tmp_path))
        # Drawn in other batches, samples differ in their last bits: that is another protocol.
        found.append({key: value for key, value in score.items() if key not in {"protocol", "protocol_hash"}})
    assert found[0]["others"].keys() == {"inception_score", "precision", "recall", "kid"}
    for other in found[1:]:
        assert other == found[0]


def test_what_was_extracted_before_a_kill_is_not_extracted_again(
    extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_IMAGES", 64)
    pixels, computed = images(300), []
    original = blocks._features

    def counted(block_nCHW: Tensor, *others: object) -> dict[str, np.ndarray]:
        computed.append(len(block_nCHW))
        return original(block_nCHW, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "_features", counted)
    with extracted(TensorImages(pixels), extractor, tmp_path / "whole") as features:
        whole = torch.cat(list(features["wide"]))
    assert computed == [64, 64, 64, 64, 44]

    def killed(_: int) -> None:
        if len(computed) == 5 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), extracted(TensorImages(pixels), extractor, tmp_path, advance=killed):
        pass
    (damaged, *_) = sorted(tmp_path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    damage(damaged)
    computed.clear()
    for file in tmp_path.glob("*.safetensors"):
        os.utime(file, (0, 0))
    with extracted(TensorImages(pixels), extractor, tmp_path) as features:
        # All are in use now, and store gc goes by the time.
        assert all(file.stat().st_mtime > 0 for file in tmp_path.glob("*.safetensors"))
        assert torch.equal(torch.cat(list(features["wide"])), whole)
        assert torch.equal(first(features["wide"], 100), whole[:100])
        assert torch.equal(first(features["logits"], 999), torch.cat(list(features["logits"])))
    assert computed == [64, 64, 44]  # the one that is damaged, and those that were missing
    assert not list(tmp_path.glob("*.safetensors"))  # what was made of them is made
    # Other weights have other features.
    computed.clear()
    other = Extractor("projection", Projection(), "wide", "logits", "1", "none", "fd-projection", WIDTH)
    with (
        extracted(TensorImages(pixels[:64]), extractor, tmp_path),
        extracted(TensorImages(pixels[:64]), other, tmp_path),
    ):
        assert computed == [64, 64]

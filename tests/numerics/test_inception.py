"""The real FID network: its weights, its features, and the CIFAR-10 value everyone knows."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity

from workloads.config.data import CIFAR10Data
from workloads.config.evaluation import ProtocolConfig
from workloads.data.prepare import ensure_prepared
from workloads.errors import ConfigError
from workloads.evaluation.blocks import ImageSet, extracted
from workloads.evaluation.extractors import load_extractor
from workloads.evaluation.features import ReferenceImages, TensorImages
from workloads.evaluation.inception import PACKAGE_SHA256, find_weights, read_weights
from workloads.evaluation.moments import feature_statistics, frechet_distance
from workloads.evaluation.samples import write_images
from workloads.evaluation.score import evaluate_samples
from workloads.files import sha256_file

PROTOCOL = ProtocolConfig.model_validate("fid2k")


def weights_are_here() -> bool:
    try:
        find_weights(PROTOCOL)
    except ConfigError:
        return False
    return True


def features_of(images: ImageSet, folder: Path) -> torch.Tensor:
    extractor = load_extractor(PROTOCOL)
    with extracted(images, extractor, folder) as found:
        return torch.cat(list(found[extractor.layer]))


needs_weights = pytest.mark.skipif(not weights_are_here(), reason="no Inception weights (rememe[inception])")


def test_without_weights_the_three_ways_to_get_them_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMEME_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match=r"REMEME_INCEPTION .*absent\.pth does not exist; .* install the extra"):
        find_weights(PROTOCOL)


def test_other_weights_are_not_taken_for_the_fid_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, file)
    monkeypatch.setenv("REMEME_INCEPTION", str(file))
    with pytest.raises(ConfigError, match="which is no file of the FID network known here"):
        find_weights(PROTOCOL)
    with pytest.raises(ConfigError, match="these are other weights, or the file is damaged"):
        find_weights(PROTOCOL.model_copy(update={"inception_sha256": "0" * 64}))


@needs_weights
@pytest.mark.inception
def test_the_packages_weights_give_the_torchscripts_features(tmp_path: Path) -> None:
    path = find_weights(PROTOCOL)
    if sha256_file(path) != PACKAGE_SHA256:
        pytest.skip("another file of weights")
    script = torch.jit.load(str(path)).eval()
    pixels = torch.randint(0, 256, (2, 3, 299, 299), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        theirs = script.net.layers((pixels.float() - 128) / 128) if hasattr(script.net, "layers") else script(pixels)
    ours = features_of(TensorImages(pixels), tmp_path)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-4)


@needs_weights
@pytest.mark.inception
def test_fid_is_torch_fidelitys_on_the_same_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sets = [TensorImages(torch.from_numpy(rng.integers(0, top, (8, 3, 32, 32), dtype=np.uint8))) for top in (256, 128)]
    ours = frechet_distance(*(feature_statistics([features_of(images, tmp_path / "blocks")]) for images in sets))
    for name, images in zip("ab", sets, strict=True):
        write_images(images, tmp_path / name)
    torch.save(read_weights(find_weights(PROTOCOL)), tmp_path / "weights.pth")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


@needs_weights
@pytest.mark.inception
@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("REMEME_CIFAR10"), reason="REMEME_CIFAR10 names no .npz")
def test_cifar10_train_against_test_is_the_known_value(tmp_path: Path) -> None:
    path = Path(os.environ["REMEME_CIFAR10"])
    train, test = (
        ensure_prepared(CIFAR10Data(path=path, split=split), tmp_path)  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    protocol = PROTOCOL.model_copy(update={"num_samples": test.num_images})
    score = evaluate_samples(ReferenceImages(test), train, protocol, cache_dir=tmp_path, device="cuda")
    assert score.value == pytest.approx(3.15, abs=0.03)

"""From images to a score through the latents of a first stage: drawn in training, sampled as published, decoded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from workloads.__main__ import main
from workloads.config.data import FolderData
from workloads.data.prepare import prepare
from workloads.ensemble import Ensemble
from workloads.evaluation.generate import generate_batch
from workloads.pipeline import read_scores
from workloads.places import RunDir

RUN: dict[str, Any] = {
    "name": "latents",
    "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 2, "variance": "learned"},
    "strategy": {"kind": "remix", "num_experts": 4, "num_bases": 2},
    "training": {"images": 64, "batch_size": 16, "learning_rate": 0.01},
    "evaluation": {
        "name": "small",
        "extractor": "fashion-cnn",
        "num_samples": 12,
        "batch_size": 6,
        "metrics": ["precision_recall", "kid"],
        "sampling": {"sampler": "ddpm", "num_steps": 10, "guidance_scale": 3, "guidance_channels": 3},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latents")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        file = root / "images" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.inference_mode():
        mean = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / float(mean.std()))
    vae.save_pretrained(root / "vae")
    images = FolderData(path=root / "images", image_size=16)
    prepare(images, root / "prepared", vae=root / "vae", posterior=True)
    data = {
        "kind": "prepared",
        "path": str(root / "prepared"),
        "image_size": 8,
        "class_conditional": True,
        "flip": True,
    }
    reference = {"kind": "folder", "path": str(root / "images"), "image_size": 16}
    (root / "run.yaml").write_text(yaml.safe_dump(RUN | {"data": data, "reference": reference}))
    num_threads = torch.get_num_threads()
    try:
        assert main(["run", str(root / "run.yaml"), "--out", str(root / "out")]) == 0
    finally:
        torch.set_num_threads(num_threads)
    return root / "out"


def test_the_score_comes_with_its_errors(run: Path) -> None:
    (score,) = read_scores(RunDir(run).scores).values()
    assert score["others"].keys() == score["others_stderr"].keys() == {"precision", "recall", "kid"}
    assert score["protocol"]["sampling"]["guidance_channels"] == 3
    assert score["stderr"] > 0
    (kept,) = Ensemble.load(run).index.scores.values()
    for name in ("value", "stderr", "others", "others_stderr", "protocol_hash"):
        assert kept[name] == score[name]


@pytest.mark.parametrize("change", [{"variance": "fixed"}, {"guidance_channels": None}, {"sampler": "ddim"}], ids=str)
def test_how_it_is_sampled_reaches_the_images(run: Path, change: dict[str, Any]) -> None:
    ensemble = Ensemble.load(run)
    protocol = ensemble.config.evaluation
    first, again = (generate_batch(ensemble, protocol, range(6))[0] for _ in range(2))
    assert first.shape == (6, 3, 16, 16)
    assert torch.equal(first, again)
    changed = protocol.model_copy(update={"sampling": protocol.sampling.model_copy(update=change)})
    assert not torch.equal(generate_batch(ensemble, changed, range(6))[0], first)

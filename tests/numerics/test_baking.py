"""Baked experts are plain networks that sample what run-time mixing samples; exported ones are diffusers'."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from workloads.__main__ import main
from workloads.config import RunConfig
from workloads.config.data import EmbeddedData
from workloads.config.evaluation import SamplingConfig
from workloads.data.prepare import ensure_prepared
from workloads.diffusion.sampling import sample
from workloads.ensemble import MAX_MIXED, Ensemble, bake, write_ensemble
from workloads.errors import ConfigError
from workloads.models.dit import to_diffusers
from workloads.training.job import train_job


@pytest.fixture(scope="module")
def remix(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2},
            "strategy": {"kind": "remix", "num_experts": 7, "num_bases": 3, "experts_per_step": 2},
            "training": {"images": 320, "batch_size": 16, "learning_rate": 3e-3},
            "evaluation": "demo",
        }
    )
    folder = tmp_path_factory.mktemp("remix")
    dataset = ensure_prepared(EmbeddedData(image_size=8), folder / "data")
    (job,) = config.jobs(dataset.spec(config.data))
    train_job(job, dataset.path, folder / "store")
    return write_ensemble(folder / "run" / "ensemble", config, dataset, [folder / "store"])


def drawn(ensemble: Ensemble) -> torch.Tensor:
    return sample(
        ensemble.denoise,
        shape_CHW=ensemble.shape_CHW,
        diffusion=ensemble.diffusion,
        sampling=SamplingConfig(num_steps=20, guidance_scale=1.5),
        seeds=range(4),
        labels_B=torch.arange(4),
        null_label=10,
        clip=True,
    )


def test_baked_experts_sample_what_run_time_mixing_samples(remix: Ensemble, tmp_path: Path) -> None:
    baked = bake(remix, tmp_path / "baked", lambda *_: None)
    assert len(list((tmp_path / "baked").glob("expert_*"))) == 7
    assert not (tmp_path / "baked" / "remix").exists()
    torch.testing.assert_close(drawn(baked), drawn(remix), rtol=1e-5, atol=1e-5)
    assert not torch.equal(baked.expert(0).blocks[0].mlp.fc1.weight, baked.expert(6).blocks[0].mlp.fc1.weight)


def test_mixing_happens_once_per_interval(remix: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Ensemble.load(remix.path)
    fresh.expert(6)
    mixed: list[object] = []
    original = fresh._remix._bases.mix
    monkeypatch.setattr(fresh._remix._bases, "mix", lambda *a: (mixed.append(a), original(*a)))
    drawn(fresh)
    assert len(mixed) == 6  # 20 steps through 7 intervals, the first of which was mixed before
    assert len(fresh._remix._slots) <= MAX_MIXED


def test_an_expert_of_ours_is_a_model_of_diffusers(remix: Ensemble, tmp_path: Path) -> None:
    to_diffusers(remix.expert(3)).save_pretrained(tmp_path)  # type: ignore[arg-type]
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path)
    x_BCHW, t_B, labels_B = torch.randn(2, 1, 8, 8), torch.tensor([450, 450]), torch.tensor([1, 10])
    with torch.no_grad():
        theirs = loaded(x_BCHW, t_B, class_labels=labels_B).sample
    torch.testing.assert_close(remix.denoise(x_BCHW, 450, labels_B).detach(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cuda:99", "xyz", "meta", "gpu"])
def test_a_device_that_is_not_here_is_one_sentence(
    device: str, remix: Ensemble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=f"device is '{device}', which this machine does not have; there is cpu"):
        Ensemble.load(remix.path, device)
    assert main(["train", "demo-meme", "--out", str(tmp_path / "out"), "--device", device]) == 2
    assert f"error: device is '{device}', which" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num", [0, -1, "3", 2.5, True])
def test_a_number_of_images_that_is_none_is_one_sentence(num: Any, remix: Ensemble) -> None:
    with pytest.raises(ConfigError, match=f"num is {num!r}; it must be a whole number of images"):
        remix.sample(num)


def test_what_is_no_remix_has_no_coefficients(remix: Ensemble, tmp_path: Path) -> None:
    assert remix.coefficients_NK.shape == (7, 3)
    baked = bake(remix, tmp_path / "baked", lambda *_: None)
    for asked in ("coefficients_NK", "num_coefficient_rows"):
        with pytest.raises(ConfigError, match="baked is no remix: its 7 experts are plain networks"):
            getattr(baked, asked)

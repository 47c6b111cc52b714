"""Relative log amplitude against a DFT written as loops and against closed forms; hooks against maps taken by hand."""

import cmath
import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from workloads.analysis.spectra import (
    Spectra,
    block_features,
    ensemble_spectra,
    feature_spectra,
    relative_log_amplitude,
    spread_between,
    spread_timesteps,
    write_curves,
)
from workloads.config import DiffusionConfig, DiTConfig, IntervalTable, IUNetConfig, LDMUNetConfig
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import ConfigError
from workloads.models.build import build_model
from workloads.training.loss_by_timestep import fixed_examples

SMALL = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "head_dim": 8,
    "norm_groups": 4,
}
IUNET = IUNetConfig(**SMALL, mixer_levels=(1,), attention_share=("1/2",), pool_sizes=(1,))
CONFIGS = [LDMUNetConfig(**SMALL), IUNET]


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_the_curve_is_that_of_a_discrete_fourier_transform_written_as_loops(size: int) -> None:
    features = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    frequencies, curve = relative_log_amplitude(features)
    expected = []
    for k in range(size // 2 + 1):
        total = 0.0
        for sample in range(2):
            for channel in range(3):
                sums = [0j, 0j]
                for y in range(size):
                    for x in range(size):
                        value = float(features[sample, channel, y, x])
                        sums[0] += value
                        sums[1] += value * cmath.exp(-2j * math.pi * (k * y + k * x) / size)
                total += math.log(abs(sums[1])) - math.log(abs(sums[0]))
        expected.append(total / 6)
    np.testing.assert_allclose(curve, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(frequencies, [2 * k / size for k in range(size // 2 + 1)], atol=1e-15)
    assert curve.dtype == frequencies.dtype == np.float64


def test_white_noise_is_flat_at_half_the_logarithm_of_two() -> None:
    """A DFT of white noise is complex Gaussian, E log|z|^2 = -gamma, but real at 0 and pi: -gamma - log 2."""
    frequencies, curve = relative_log_amplitude(
        torch.randn(200, 20, 16, 16, generator=torch.Generator().manual_seed(0))
    )
    # log|z| of 4000 maps: standard deviations 0.64 and 1.11, so the mean of the difference scatters by 0.02.
    np.testing.assert_allclose(curve[1:-1], math.log(2) / 2, atol=0.08)
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(0, abs=0.1)
    slope = np.polyfit(frequencies[1:-1], curve[1:-1], 1)[0]
    assert slope == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_a_gaussian_blur_lowers_the_curve_by_its_transfer_function(sigma: float) -> None:
    """exp(-s^2 |w|^2 / 2) in both directions, so -s^2 w^2 on the diagonal; the blur is done in space, by scipy."""
    sharp = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blurred = scipy.ndimage.gaussian_filter(sharp.numpy(), sigma, axes=(2, 3), mode="wrap", truncate=8)
    frequencies, before = relative_log_amplitude(sharp)
    _, after = relative_log_amplitude(torch.from_numpy(blurred))
    low = frequencies <= 0.5  # beyond, a Gaussian sampled at whole pixels is no longer its continuous transform
    expected = -((sigma * math.pi * frequencies) ** 2)
    assert low.sum() == 9
    np.testing.assert_allclose((after - before)[low], expected[low], rtol=0, atol=2e-3)


def test_constant_and_empty_maps_give_finite_curves() -> None:
    _, curve = relative_log_amplitude(torch.full((1, 1, 8, 8), 3.0))
    np.testing.assert_allclose(curve, [0, *4 * [math.log(2**-52)]])
    _, curve = relative_log_amplitude(torch.zeros(1, 2, 8, 8))
    np.testing.assert_array_equal(curve, np.zeros(5))
    _, curve = relative_log_amplitude(torch.eye(2).repeat(1, 1, 4, 4) - 0.5)  # +-1/2 like a chessboard: no mean at all
    assert np.isfinite(curve).all()
    assert curve[-1] == pytest.approx(-math.log(2**-52))


def test_scale_does_not_matter_and_oblong_maps_are_refused() -> None:
    features = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        relative_log_amplitude(features)[1], relative_log_amplitude(-7e4 * features)[1], atol=1e-6
    )
    with pytest.raises(ValueError, match="feature maps are 8 x 4"):
        relative_log_amplitude(features[..., :4])


def some_batch(num_images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(num_images, 1, 8, 8, generator=generator) for _ in range(2))  # type: ignore[return-value]


def fresh_model(config: LDMUNetConfig | IUNetConfig, num_classes: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config, channels=1, image_size=8, num_classes=num_classes).eval()
    for parameter in model.parameters():  # last layers start at zero; a map must not look like another
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_blocks_are_found_by_name_and_their_maps_are_the_ones_the_network_computes(config: LDMUNetConfig) -> None:
    model = fresh_model(config)
    x_BCHW, _ = some_batch()
    t_B = torch.tensor([0, 10, 999])
    maps = block_features(model, x_BCHW, t_B)
    assert list(maps) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    with torch.inference_mode():  # the network's forward pass, by hand
        embedding = model.time_embedding(model.time_proj(t_B))
        hidden, skips = model.conv_in(x_BCHW), ()
        skips += (hidden,)
        for index, block in enumerate(model.down_blocks):
            hidden, residuals = block(hidden, embedding)
            assert torch.equal(maps[f"down_blocks.{index}"], residuals[0])  # one layer: the map before downsampling
            skips += residuals
        hidden = model.mid_block(hidden, embedding)
        assert torch.equal(maps["mid_block"], hidden)
        for index, block in enumerate(model.up_blocks):
            hidden = block(hidden, skips[-len(block.resnets) :], embedding)
            skips = skips[: -len(block.resnets)]
            assert torch.equal(maps[f"up_blocks.{index}"], hidden)
    assert [maps[name].shape[-1] for name in maps] == [8, 4, 4, 8, 8]
    assert not any(module._forward_hooks for module in model.modules())


def test_curves_average_over_images_whatever_the_batch() -> None:
    model = fresh_model(IUNET)
    process = DiffusionProcess(DiffusionConfig())
    x0_BCHW, noise_BCHW = some_batch(19)  # more than one batch, the last one smaller
    spectra = feature_spectra(model, process, x0_BCHW, noise_BCHW, [7, 700])
    assert spectra.timesteps == (7, 700)
    for row, timestep in enumerate([7, 700]):
        curves = []
        for index in range(19):
            one = slice(index, index + 1)
            t_B = torch.tensor([timestep])
            maps = block_features(model, process.add_noise(x0_BCHW[one], noise_BCHW[one], t_B), t_B)
            curves.append(relative_log_amplitude(maps["up_blocks.0"])[1])
        # float32 maps of another batch size differ in the last bits; amplitudes near zero amplify that.
        np.testing.assert_allclose(spectra.amplitudes["up_blocks.0"][row], np.mean(curves, axis=0), atol=1e-3)
    np.testing.assert_allclose(spectra.frequencies["mid_block"], [0, 0.5, 1])
    np.testing.assert_allclose(
        spectra.high_frequency("mid_block"), spectra.amplitudes["mid_block"][:, 1:].mean(axis=1), atol=1e-12
    )
    assert not np.allclose(*spectra.amplitudes["mid_block"])


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spectra need a U-Net or a DiT: Linear has no down_blocks"):
        block_features(nn.Linear(1, 1), torch.zeros(1, 1), torch.zeros(1))


def test_a_dits_tokens_are_seen_where_they_lie_in_the_image() -> None:
    torch.manual_seed(0)
    config = DiTConfig(hidden_size=8, depth=2, num_heads=2, patch_size=2)
    model: Any = build_model(config, channels=1, image_size=8, num_classes=3).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x_BCHW, noise_BCHW = some_batch()
    t_B, labels_B = torch.tensor([5, 5, 5]), torch.tensor([0, 2, 3])
    maps = block_features(model, x_BCHW, t_B, labels_B)
    assert list(maps) == ["blocks.0", "blocks.1"]
    with torch.inference_mode():  # the network's forward pass, by hand
        tokens_BLD = model.x_embedder(x_BCHW) + model.pos_embed
        condition_BD = model.t_embedder(t_B) + model.y_embedder(labels_B)
        for index, block in enumerate(model.blocks):
            tokens_BLD = block(tokens_BLD, condition_BD)
            for row in range(4):
                for column in range(4):
                    torch.testing.assert_close(
                        maps[f"blocks.{index}"][:, :, row, column], tokens_BLD[:, 4 * row + column]
                    )
    process = DiffusionProcess(DiffusionConfig())
    spectra = feature_spectra(model, process, x_BCHW, noise_BCHW, [5], labels_B)
    assert list(spectra.amplitudes) == ["x_t", "blocks.0", "blocks.1"]
    alphas = process.alphas_cumprod_T[5]
    x_t_BCHW = alphas.sqrt() * x_BCHW + (1 - alphas).sqrt() * noise_BCHW
    np.testing.assert_allclose(spectra.amplitudes["x_t"][0], relative_log_amplitude(x_t_BCHW)[1], atol=1e-4)


def test_what_differs_between_networks_is_told_at_equal_timesteps_only(tmp_path: Path) -> None:
    frequencies = {"mid_block": np.array([0.0, 0.5, 1.0])}

    def spectra(high: float, timesteps: tuple[int, ...] = (10, 20)) -> Spectra:
        curves = np.array([[0.0, high, high + 2], [0.0, 3 * high, 3 * high]])
        return Spectra(timesteps, frequencies, {"mid_block": curves})

    # Upper halves: high + 1 and 3 high; of -1 and 1 the standard deviations are sqrt(2) and 3 sqrt(2).
    assert spread_between([spectra(-1), spectra(1)], "mid_block") == pytest.approx(2 * math.sqrt(2))
    assert math.isnan(spread_between([spectra(-1)], "mid_block"))
    with pytest.raises(ValueError, match="different timesteps"):
        spread_between([spectra(-1), spectra(1, (10, 30))], "mid_block")
    write_curves(tmp_path / "curves.csv", [("a", spectra(-1)), ("b", spectra(1))])
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    assert [float(row["relative_log_amplitude"]) for row in rows if row["network"] == "b"] == [0, 1, 3, 0, 3, 3]
    assert [(row["timestep"], row["frequency_pi"]) for row in rows[:4]] == [
        ("10", "0"),
        ("10", "0.5"),
        ("10", "1"),
        ("20", "0"),
    ]


def test_experts_are_seen_on_the_same_images_where_they_work_or_everywhere(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    dataset = ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))
    models = [fresh_model(config, num_classes=10) for config in CONFIGS]
    ensemble = SimpleNamespace(
        intervals=IntervalTable((400,), 1000),
        diffusion=DiffusionConfig(),
        device=torch.device("cpu"),
        expert=models.__getitem__,
        num_classes=10,
    )
    own = ensemble_spectra(ensemble, dataset, num_images=4)  # type: ignore[arg-type]
    assert [spectra.timesteps for spectra in own] == [(40, 120, 200, 280, 360), (460, 580, 700, 820, 940)]
    everywhere = ensemble_spectra(ensemble, dataset, num_images=4, timesteps=[200, 940], everywhere=True)  # type: ignore[arg-type]
    assert [spectra.timesteps for spectra in everywhere] == [(200, 940), (200, 940)]
    for block in own[0].amplitudes:
        np.testing.assert_array_equal(own[0].amplitudes[block][2], everywhere[0].amplitudes[block][0])
        np.testing.assert_array_equal(own[1].amplitudes[block][4], everywhere[1].amplitudes[block][1])
    (batch, noise_BCHW), *_ = fixed_examples(dataset, num_images=4, seed=0)
    alone = feature_spectra(
        models[1], DiffusionProcess(DiffusionConfig()), batch.images_BCHW, noise_BCHW, [940], batch.labels_B
    )
    np.testing.assert_array_equal(alone.amplitudes["mid_block"][0], everywhere[1].amplitudes["mid_block"][1])


def test_timesteps_are_spread_evenly_over_each_interval() -> None:
    assert spread_timesteps(IntervalTable((250, 500, 750), 1000), 2) == (62, 187, 312, 437, 562, 687, 812, 937)
    assert spread_timesteps(IntervalTable((1,), 4), 3) == (0, 1, 2, 3)
    assert len(spread_timesteps(IntervalTable((), 1000))) == 9
    assert len(spread_timesteps(IntervalTable((250, 500, 750), 1000))) == 12

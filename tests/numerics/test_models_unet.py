"""Whole networks: latent diffusion's U-Net written out anew, conditioning, gradients, round trips, sizes."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.config.models import AnyModel, DiTConfig, IUNetConfig, LDMUNetConfig
from workloads.errors import CheckpointError, ConfigError
from workloads.models.build import BUILDERS, CLASSES, DIFFUSERS_CLASS, build_model, load_model
from workloads.models.iunet import InceptionDownBlock2D

SMALL: dict[str, Any] = {
    "channels": 16,
    "channel_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "attention_levels": (1, 2),
    "head_dim": 8,
    "norm_groups": 4,
}
LDM = LDMUNetConfig(**SMALL)
IUNET = IUNetConfig(**SMALL, mixer_levels=(1, 2), attention_share=("1/4", "3/4"), pool_sizes=(2, 2), mlp_ratio=2)
DIT = DiTConfig(hidden_size=16, depth=1, num_heads=2)
both_kinds = pytest.mark.parametrize("config", [LDM, IUNET], ids=lambda config: config.kind)


def random_model(config: AnyModel, *, num_classes: int | None = 10, image_size: int = 28) -> Any:
    """With no weight at its initial zero, so that everything has an effect."""
    torch.manual_seed(0)
    model = build_model(config, channels=1, image_size=image_size, num_classes=num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(count: int = 2, size: int = 28) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(5))


def reference_ldm_unet(weights: dict[str, Tensor], config: LDMUNetConfig, x: Tensor, t: Tensor) -> Tensor:
    """latent diffusion's U-Net, written from its description (arXiv:2112.10752, appendix; arXiv:2105.05233)."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, config.norm_groups, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    def res_block(x: Tensor, name: str) -> Tensor:
        h = conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = h + linear(F.silu(emb), f"{name}.time_emb_proj")[:, :, None, None]
        h = conv(F.silu(norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (conv(x, f"{name}.conv_shortcut") if x.shape[1] != h.shape[1] else x)

    def attention(x: Tensor, name: str) -> Tensor:
        flat = norm(x, f"{name}.group_norm").flatten(2).transpose(1, 2)
        heads = x.shape[1] // config.head_dim
        q, k, v = (
            linear(flat, f"{name}.{part}").unflatten(2, (heads, -1)).transpose(1, 2)
            for part in ("to_q", "to_k", "to_v")
        )
        mixed = (q @ k.transpose(2, 3) / math.sqrt(config.head_dim)).softmax(dim=-1) @ v
        return x + linear(mixed.transpose(1, 2).flatten(2), f"{name}.to_out.0").transpose(1, 2).reshape(x.shape)

    def unit(x: Tensor, name: str, index: int, level: int) -> Tensor:
        x = res_block(x, f"{name}.resnets.{index}")
        return attention(x, f"{name}.attentions.{index}") if level in config.attention_levels else x

    half = config.channels // 2
    angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = linear(F.silu(linear(emb, "time_embedding.linear_1")), "time_embedding.linear_2")

    last = len(config.channel_mult) - 1
    x = conv(x, "conv_in", padding=1)
    skips = [x]
    for level in range(last + 1):
        for index in range(config.num_res_blocks):
            x = unit(x, f"down_blocks.{level}", index, level)
            skips.append(x)
        if level < last:
            x = conv(x, f"down_blocks.{level}.downsamplers.0.conv", stride=2, padding=1)
            skips.append(x)
    x = attention(res_block(x, "mid_block.resnets.0"), "mid_block.attentions.0")
    x = res_block(x, "mid_block.resnets.1")
    for step, level in enumerate(reversed(range(last + 1))):
        for index in range(config.num_res_blocks + 1):
            x = unit(torch.cat([x, skips.pop()], dim=1), f"up_blocks.{step}", index, level)
        if level > 0:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(x, f"up_blocks.{step}.upsamplers.0.conv", padding=1)
    assert not skips
    return conv(F.silu(norm(x, "conv_norm_out")), "conv_out", padding=1)


@pytest.mark.parametrize("attention_levels", [(), (1, 2), (0, 1, 2)], ids=str)
@torch.no_grad()
def test_the_unet_is_latent_diffusions(attention_levels: tuple[int, ...]) -> None:
    config = LDM.model_copy(update={"attention_levels": attention_levels, "num_res_blocks": 2})
    model = random_model(config, num_classes=None).double()
    x, t = images(2, 8).double(), torch.tensor([3, 977])
    expected = reference_ldm_unet(model.state_dict(), config, x, t)
    assert expected.std() > 0.01
    # The model's time embedding is computed in float32.
    torch.testing.assert_close(model(x, t).sample, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@both_kinds
@torch.no_grad()
def test_a_new_network_starts_at_zero_and_its_blocks_at_the_identity(config: AnyModel) -> None:
    model: Any = build_model(config, channels=1, image_size=28, num_classes=10)
    x, t, labels = images(), torch.tensor([0, 999]), torch.tensor([0, 10])
    assert torch.equal(model(x, t, class_labels=labels).sample, torch.zeros_like(x))
    hidden, emb = torch.randn(1, 32, 14, 14), torch.randn(1, 64)
    for block in (model.mid_block, model.up_blocks[0].attentions[0]):
        torch.testing.assert_close(block(hidden, temb=emb), hidden, rtol=0, atol=0)
    if config.kind == "iunet":
        torch.testing.assert_close(model.down_blocks[2].blocks[0](hidden, emb), hidden, rtol=0, atol=0)
    else:
        torch.testing.assert_close(model.down_blocks[2].resnets[0](hidden, emb), hidden, rtol=0, atol=0)


@both_kinds
def test_every_weight_learns(config: AnyModel) -> None:
    model = random_model(config).train()
    labels = torch.tensor([4, 10])
    model(images(), torch.tensor([5, 500]), class_labels=labels).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@both_kinds
@torch.no_grad()
def test_class_and_timestep_change_the_prediction(config: AnyModel) -> None:
    model, x = random_model(config), images(1)

    def predict(timestep: int, label: int) -> Tensor:
        output: Tensor = model(x, torch.tensor([timestep]), class_labels=torch.tensor([label])).sample
        return output

    base = predict(100, 3)
    for other in (predict(101, 3), predict(100, 4), predict(100, 10)):  # 10 means "no class"
        assert (other - base).abs().max() > 1e-4
    with pytest.raises(IndexError):
        predict(100, 11)
    unconditional = random_model(config, num_classes=None)
    assert unconditional(x, torch.tensor([100])).sample.shape == x.shape


@both_kinds
@torch.no_grad()
def test_mixer_blocks_hear_the_timestep(config: AnyModel) -> None:
    """Not only the ordinary blocks around them."""
    model = random_model(config)
    level = model.down_blocks[1]
    assert isinstance(level, InceptionDownBlock2D) == (config.kind == "iunet")
    x = torch.randn(1, 16, 14, 14)
    assert (level(x, torch.zeros(1, 64))[0] - level(x, torch.ones(1, 64))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("num_classes", [None, 10])
@both_kinds
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_network(config: AnyModel, num_classes: int | None, tmp_path: Path) -> None:
    model = random_model(config, num_classes=num_classes).eval()
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    labels = None if num_classes is None else torch.tensor([1, 10])
    t = torch.tensor([7, 700])
    assert torch.equal(model(images(), t, class_labels=labels).sample, loaded(images(), t, class_labels=labels).sample)


def test_loading_from_elsewhere_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no network"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    with pytest.raises(CheckpointError, match="Transformer2DModel"):
        load_model(tmp_path)
    build_model(LDM, channels=1, image_size=28, num_classes=None).save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="holds no network"):
        load_model(tmp_path)


@both_kinds
@pytest.mark.parametrize("image_size", [4, 20, 28, 32])
@torch.no_grad()
def test_any_size_the_levels_can_halve_works(config: AnyModel, image_size: int) -> None:
    model = random_model(config, image_size=image_size)
    x = images(1, image_size)
    output = model(x, torch.tensor([3]), class_labels=torch.tensor([0])).sample
    assert output.shape == x.shape
    assert output.isfinite().all()


def test_a_size_the_levels_cannot_halve_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"image_size 28 cannot be halved 3 times.*multiple of 8 or fewer levels"):
        build_model(LDMUNetConfig(), channels=1, image_size=28, num_classes=None)


@both_kinds
@torch.no_grad()
def test_channels_last_changes_nothing_but_speed(config: AnyModel) -> None:
    model, x = random_model(config), images()
    labels, t = torch.tensor([1, 2]), torch.tensor([9, 90])
    usual = model(x, t, class_labels=labels).sample
    model.to(memory_format=torch.channels_last)
    other = model(x.contiguous(memory_format=torch.channels_last), t, class_labels=labels).sample
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-4)


def test_every_kind_can_be_built_and_loaded() -> None:
    from typing import get_args

    kinds = get_args(get_args(AnyModel)[0])
    assert set(kinds) == set(BUILDERS)
    built = {type(build_model(config, channels=1, image_size=28, num_classes=None)) for config in (LDM, IUNET, DIT)}
    assert built == {getattr(import_module(CLASSES[name]), name) for name in CLASSES.keys() - {DIFFUSERS_CLASS}}

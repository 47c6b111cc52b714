"""The inception mixer's branches against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workloads.models.iunet import InceptionDownBlock2D
from workloads.models.mixer import InceptionMixer, InceptionMixerBlock, PooledAttention

Array = np.ndarray
gelu = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))


def array(tensor: Tensor | nn.Parameter) -> Array:
    return tensor.detach().double().numpy()


def pointwise(x_CHW: Array, conv: nn.Conv2d) -> Array:
    weight, out = array(conv.weight)[:, :, 0, 0], np.zeros((conv.out_channels, *x_CHW.shape[1:]))
    for y in range(x_CHW.shape[1]):
        for x in range(x_CHW.shape[2]):
            out[:, y, x] = weight @ x_CHW[:, y, x] + (0 if conv.bias is None else array(conv.bias))
    return out


def depthwise(x_CHW: Array, conv: nn.Conv2d) -> Array:
    weight, out = array(conv.weight), np.zeros_like(x_CHW)
    _, height, width = x_CHW.shape
    for channel, y, x in np.ndindex(*x_CHW.shape):
        for dy, dx in np.ndindex(3, 3):
            if 0 <= y + dy - 1 < height and 0 <= x + dx - 1 < width:
                out[channel, y, x] += weight[channel, 0, dy, dx] * x_CHW[channel, y + dy - 1, x + dx - 1]
    return out


def max_pool(x_CHW: Array) -> Array:
    out = np.zeros_like(x_CHW)
    for channel, y, x in np.ndindex(*x_CHW.shape):
        out[channel, y, x] = x_CHW[channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
    return out


def attend(x_CHW: Array, attention: PooledAttention) -> Array:
    """Every window's mean attends to every other's; each pixel then takes what its window got."""
    pool, dim = attention.pool_size, attention.head_dim
    channels, height, width = x_CHW.shape
    windows = [(y, x) for y in range(0, height, pool) for x in range(0, width, pool)]
    tokens = [x_CHW[:, y : y + pool, x : x + pool].mean(axis=(1, 2)) for y, x in windows]
    qkv = [array(attention.qkv.weight) @ token + array(attention.qkv.bias) for token in tokens]
    out = np.zeros_like(x_CHW)
    for head in range(channels // dim):
        query, key, value = (
            [row[start + head * dim : start + (head + 1) * dim] for row in qkv] for start in (0, channels, 2 * channels)
        )
        for (y, x), q in zip(windows, query, strict=True):
            weights = np.exp([q @ k / math.sqrt(dim) for k in key])
            mixed = sum(w * v for w, v in zip(weights / weights.sum(), value, strict=True))
            out[head * dim : (head + 1) * dim, y : y + pool, x : x + pool] = mixed[:, None, None]
    return out


def random_mixer(conv: int, pool: int, attention: int, pool_size: int = 1) -> InceptionMixer:
    torch.manual_seed(0)
    return InceptionMixer(
        conv_channels=conv, pool_channels=pool, attention_channels=attention, head_dim=4, pool_size=pool_size
    ).double()


def random_image(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def assert_equal(found: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_convolution_branch_is_pointwise_depthwise_gelu() -> None:
    mixer, x = random_mixer(3, 0, 0), random_image(3, 5, 4)
    assert isinstance(mixer.conv, nn.Sequential)
    assert mixer.conv[0].out_channels == 6  # iFormer doubles the channels
    expected = gelu(depthwise(pointwise(array(x), mixer.conv[0]), mixer.conv[1]))
    assert_equal(mixer.conv(x[None])[0], expected)


@torch.no_grad()
def test_pooling_branch_is_max_pool_pointwise_gelu() -> None:
    mixer, x = random_mixer(0, 3, 0), random_image(3, 5, 4)
    assert isinstance(mixer.pool, nn.Sequential)
    assert mixer.pool[1].out_channels == 6
    assert_equal(mixer.pool(x[None])[0], gelu(pointwise(max_pool(array(x)), mixer.pool[1])))


@pytest.mark.parametrize(
    ("size", "pool_size"), [((6, 4), 1), ((6, 4), 2), ((7, 7), 2), ((7, 7), 3), ((9, 7), 4), ((3, 5), 8)], ids=str
)
@torch.no_grad()
def test_attention_branch_pools_attends_and_upsamples(size: tuple[int, int], pool_size: int) -> None:
    mixer, x = random_mixer(0, 0, 8, pool_size), random_image(8, *size)
    assert isinstance(mixer.attention, PooledAttention)
    assert_equal(mixer.attention(x[None])[0], attend(array(x), mixer.attention))


@pytest.mark.parametrize(
    "split", [(3, 2, 8), (4, 4, 0), (0, 3, 4), (3, 0, 4), (2, 0, 0), (0, 2, 0), (0, 0, 4)], ids=str
)
@torch.no_grad()
def test_branches_are_fused_by_depthwise_and_pointwise(split: tuple[int, int, int]) -> None:
    """Also: a mixer with all channels on one branch is that branch, fused."""
    mixer, x = random_mixer(*split, pool_size=2), random_image(sum(split), 7, 5)
    conv, pool, low = np.split(array(x), np.cumsum(split)[:2])
    parts = []
    if split[0]:
        parts.append(gelu(depthwise(pointwise(conv, mixer.conv[0]), mixer.conv[1])))
    if split[1]:
        parts.append(gelu(pointwise(max_pool(pool), mixer.pool[1])))
    if split[2]:
        parts.append(attend(low, mixer.attention))
    y = np.concatenate(parts)
    expected = pointwise(y + depthwise(y, mixer.depthwise), mixer.project)
    assert_equal(mixer(x[None])[0], expected)
    present = [mixer.conv is not None, mixer.pool is not None, mixer.attention is not None]
    assert present == [count > 0 for count in split]


def test_a_block_adds_mixer_and_mlp_to_its_input() -> None:
    """x + mixer(norm(x) + time), then x + mlp(norm(x)), on a 3x3 convolution where the width changes."""
    block = InceptionMixerBlock(4, random_mixer(2, 2, 4, 2), time_channels=6, norm_groups=2, mlp_ratio=2.5).double()
    x, time = random_image(4, 6, 6)[None], torch.randn(1, 6, dtype=torch.float64)
    assert isinstance(block.widen, nn.Conv2d)
    assert block.mlp[0].out_channels == 20

    def norm(x: Tensor) -> Tensor:
        groups = x.unflatten(1, (2, 4))
        centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
        return (centred / (centred.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)

    wide = block.widen(x)
    shift = block.time[1](time * torch.sigmoid(time))[:, :, None, None]
    mixed = wide + block.mixer(norm(wide) + shift)
    torch.testing.assert_close(block(x, time), mixed + block.mlp(norm(mixed)), rtol=1e-9, atol=1e-9)
    same_width = InceptionMixerBlock(8, random_mixer(2, 2, 4), time_channels=6, norm_groups=2, mlp_ratio=2)
    assert isinstance(same_width.widen, nn.Identity)


def test_a_level_hands_every_block_and_the_downsampled_map_to_the_decoder() -> None:
    level = InceptionDownBlock2D(
        4,
        8,
        num_layers=2,
        attention_channels=4,
        head_dim=4,
        pool_size=2,
        time_channels=6,
        norm_groups=2,
        mlp_ratio=2.0,
        downsample=True,
    )
    x, time = torch.randn(1, 4, 6, 6), torch.randn(1, 6)
    output, residuals = level(x, time)
    first = level.blocks[0](x, time)
    second = level.blocks[1](first, time)
    assert [tuple(r.shape) for r in residuals] == [(1, 8, 6, 6), (1, 8, 6, 6), (1, 8, 3, 3)]
    assert torch.equal(residuals[0], first)
    assert torch.equal(residuals[1], second)
    assert torch.equal(residuals[2], output)

"""The inception mixer of iFormer (Si et al. 2022, arXiv:2205.12956), made a block of a denoising U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Axes: B batch, C channels, H height, W width, N positions, E time-embedding channels.


class PooledAttention(nn.Module):
    """Average-pool, softmax self-attention, nearest upsampling: the low-frequency branch. (B, C, H, W) -> same."""

    def __init__(self, channels: int, head_dim: int, pool_size: int) -> None:
        super().__init__()
        assert channels % head_dim == 0
        self.head_dim = head_dim
        self.pool_size = pool_size
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        if self.pool_size > 1:
            # A window that sticks out over the edge (7 x 7 pooled by 2) averages what lies inside.
            x_BCHW = F.avg_pool2d(x_BCHW, self.pool_size, ceil_mode=True)
        pooled_shape = x_BCHW.shape
        qkv_BNC = self.qkv(x_BCHW.flatten(2).transpose(1, 2))
        query, key, value = qkv_BNC.unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, head_dim)
        y_BCHW = mixed.transpose(2, 3).reshape(pooled_shape)
        if self.pool_size > 1:
            y_BCHW = F.interpolate(y_BCHW, scale_factor=float(self.pool_size), mode="nearest")
        # A window that sticks out over the edge has made the map larger.
        return y_BCHW[..., :height, :width]


class InceptionMixer(nn.Module):
    """Convolution, max-pooling and attention side by side on slices of the channels. (B, C, H, W) -> same.

    As in iFormer's released code: the convolution and pooling branches double their channels, and the branches'
    outputs y are fused as 1x1(y + depthwise(y)). C is the sum of the three counts, each of which may be 0.
    """

    def __init__(
        self,
        *,
        conv_channels: int,
        pool_channels: int,
        attention_channels: int,
        head_dim: int = 32,
        pool_size: int = 1,
    ) -> None:
        super().__init__()
        self.split = (conv_channels, pool_channels, attention_channels)
        self.conv: nn.Module | None = None
        self.pool: nn.Module | None = None
        self.attention: nn.Module | None = None
        if conv_channels:
            wide = 2 * conv_channels
            self.conv = nn.Sequential(
                nn.Conv2d(conv_channels, wide, 1, bias=False),
                nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
                nn.GELU(),
            )
        if pool_channels:
            self.pool = nn.Sequential(
                nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(pool_channels, 2 * pool_channels, 1), nn.GELU()
            )
        if attention_channels:
            self.attention = PooledAttention(attention_channels, head_dim, pool_size)
        fused = 2 * conv_channels + 2 * pool_channels + attention_channels
        self.depthwise = nn.Conv2d(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.project = nn.Conv2d(fused, sum(self.split), 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches = zip(
            (self.conv, self.pool, self.attention), torch.split(x_BCHW, list(self.split), dim=1), strict=True
        )
        y_BCHW = torch.cat([branch(part) for branch, part in branches if branch is not None], dim=1)
        projected: Tensor = self.project(y_BCHW + self.depthwise(y_BCHW))
        return projected


class InceptionMixerBlock(nn.Module):
    """A mixer and an MLP, each normed before and added to its input; the place of a ResBlock with its attention.

    Three choices the MEME paper does not settle, made as the rest of the U-Net makes them: GroupNorm where iFormer
    has LayerNorm; the time embedding enters as a ResBlock's does, SiLU and Linear added to the features, here behind
    the first norm, which would otherwise remove part of it; a change of width is a 3x3 convolution, iFormer's
    patch embedding without its stride (the level before has halved the resolution already).
    """

    def __init__(
        self, in_channels: int, mixer: InceptionMixer, *, time_channels: int, norm_groups: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        channels = sum(mixer.split)
        hidden = round(channels * mlp_ratio)
        self.widen = nn.Conv2d(in_channels, channels, 3, padding=1) if in_channels != channels else nn.Identity()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, channels))
        self.norm1 = nn.GroupNorm(norm_groups, channels)
        self.mixer = mixer
        self.norm2 = nn.GroupNorm(norm_groups, channels)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W)."""
        x_BCHW = self.widen(x_BCHW)
        x_BCHW = x_BCHW + self.mixer(self.norm1(x_BCHW) + self.time(time_BE)[:, :, None, None])
        mixed_BCHW: Tensor = x_BCHW + self.mlp(self.norm2(x_BCHW))
        return mixed_BCHW

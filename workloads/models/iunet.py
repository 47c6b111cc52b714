"""MEME's iU-Net (arXiv:2306.04990): a U-Net with inception-mixer blocks in its encoder."""

from collections.abc import Sequence

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.downsampling import Downsample2D
from torch import Tensor, nn

from workloads.imports import unopened
from workloads.models.mixer import InceptionMixer, InceptionMixerBlock

# One U-Net; all of diffusers' transformers and SciPy, which come with the others, take a second.
with unopened("diffusers.models.transformers", "diffusers.models.unets"):
    from diffusers.models.unets.unet_2d import UNet2DModel

# Pipelines of diffusers look for ModelMixin beside a class, to know its kind.
__all__ = ["IUNet2DModel", "InceptionDownBlock2D", "ModelMixin", "UNet2DModel"]

# Axes: B batch, C channels, H height, W width, E time-embedding channels.

MIXER_LEVEL = "InceptionDownBlock2D"
"""What config.json calls a mixer level. diffusers' UNet2DModel knows no such block and refuses the file, where by any
other name it would put a block of its own there, with random weights."""


class InceptionDownBlock2D(nn.Module):
    """One encoder level of mixer blocks, with the interface of diffusers' DownBlock2D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        attention_channels: int,
        head_dim: int,
        pool_size: int,
        time_channels: int,
        norm_groups: int,
        mlp_ratio: float,
        downsample: bool,
    ) -> None:
        super().__init__()
        high = out_channels - attention_channels
        assert high % 2 == 0
        blocks = []
        for layer in range(num_layers):
            mixer = InceptionMixer(
                conv_channels=high // 2,
                pool_channels=high // 2,
                attention_channels=attention_channels,
                head_dim=head_dim,
                pool_size=pool_size,
            )
            blocks.append(
                InceptionMixerBlock(
                    in_channels if layer == 0 else out_channels,
                    mixer,
                    time_channels=time_channels,
                    norm_groups=norm_groups,
                    mlp_ratio=mlp_ratio,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.downsampler = Downsample2D(out_channels, use_conv=True, padding=1, name="op") if downsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C, H, W), (B, E) -> output, and what the decoder is handed: every block's output, and the last."""
        residuals: tuple[Tensor, ...] = ()
        for block in self.blocks:
            hidden_states = block(hidden_states, temb)
            residuals += (hidden_states,)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states)
            residuals += (hidden_states,)
        return hidden_states, residuals


class IUNet2DModel(UNet2DModel):  # type: ignore[misc]
    """UNet2DModel whose encoder levels `mixer_levels` are InceptionDownBlock2D ("asymmetric merge").

    Middle and decoder stay ordinary. Which blocks the paper replaces is not known; replacing a whole level's
    ResBlocks and attention, iFormer's own ratios kept, lands on its published sizes (see tests/unit/test_cost.py).
    """

    _supports_gradient_checkpointing = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        num_class_embeds: int | None = None,
        mixer_levels: Sequence[int] = (1, 2, 3),
        mixer_attention_channels: Sequence[int] = (128, 256, 416),
        mixer_pool_sizes: Sequence[int] = (2, 2, 1),
        mlp_ratio: float = 4.0,
        center_input_sample: bool = False,
        class_embed_type: str | None = None,
        time_embedding_type: str = "positional",
    ) -> None:
        # The bare constructor: the decorated one would add arguments to the saved config that this class lacks.
        UNet2DModel.__init__.__wrapped__(
            self,
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=_ordinary_blocks(down_block_types, up_block_types),
            up_block_types=tuple(up_block_types),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            num_class_embeds=num_class_embeds,
            center_input_sample=center_input_sample,
            class_embed_type=class_embed_type,
            time_embedding_type=time_embedding_type,
        )
        for level, attention_channels, pool_size in zip(
            mixer_levels, mixer_attention_channels, mixer_pool_sizes, strict=True
        ):
            self.down_blocks[level] = InceptionDownBlock2D(
                # Level 0 follows the first convolution, which has its width.
                block_out_channels[max(level - 1, 0)],
                block_out_channels[level],
                num_layers=layers_per_block,
                attention_channels=attention_channels,
                head_dim=attention_head_dim,
                pool_size=pool_size,
                time_channels=4 * block_out_channels[0],
                norm_groups=norm_num_groups,
                mlp_ratio=mlp_ratio,
                downsample=level < len(block_out_channels) - 1,
            )
        named = [MIXER_LEVEL if level in mixer_levels else name for level, name in enumerate(down_block_types)]
        self.register_to_config(down_block_types=named)


def _ordinary_blocks(down_block_types: Sequence[str], up_block_types: Sequence[str]) -> tuple[str, ...]:
    """With a block of diffusers where a mixer level is to be: what mirrors the decoder's."""
    mirrored = [name.replace("Up", "Down") for name in reversed(up_block_types)]
    return tuple(other if name == MIXER_LEVEL else name for name, other in zip(down_block_types, mirrored, strict=True))

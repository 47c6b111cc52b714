"""U-Nets from their configurations. Beside build.py, for a DiT needs none of it."""

from typing import Any

from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from workloads.config.models import IUNetConfig, LDMUNetConfig
from workloads.models.iunet import IUNet2DModel, UNet2DModel
from workloads.models.mixer import InceptionMixerBlock


def build_ldm_unet(config: LDMUNetConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    """latent-diffusion's."""
    model = UNet2DModel(**_shared_arguments(config, channels, image_size, num_classes))
    _zero_last_layers(model)
    return model


def build_iunet(config: IUNetConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    """MEME's (arXiv:2306.04990)."""
    attention_channels = tuple(
        int(share * config.widths[level])
        for level, share in zip(config.mixer_levels, config.attention_share, strict=True)
    )
    model = IUNet2DModel(
        **_shared_arguments(config, channels, image_size, num_classes),
        mixer_levels=config.mixer_levels,
        mixer_attention_channels=attention_channels,
        mixer_pool_sizes=config.pool_sizes,
        mlp_ratio=config.mlp_ratio,
    )
    _zero_last_layers(model)
    return model


def _shared_arguments(
    config: LDMUNetConfig | IUNetConfig, channels: int, image_size: int, num_classes: int | None
) -> dict[str, Any]:
    """latent-diffusion's U-Net (arXiv:2112.10752) in UNet2DModel's words.

    What is not named here, UNet2DModel does as latent-diffusion does: GroupNorm with eps 1e-5 and SiLU, convolutions
    for down- and upsampling, time embedding cos before sin, four times the base width and added in each ResBlock.
    """
    levels = range(len(config.channel_mult))
    return {
        "sample_size": image_size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "down_block_types": tuple(_block("Down", level, config) for level in levels),
        "up_block_types": tuple(_block("Up", level, config) for level in reversed(levels)),
        "attention_head_dim": config.head_dim,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }


def _block(direction: str, level: int, config: LDMUNetConfig | IUNetConfig) -> str:
    return f"Attn{direction}Block2D" if level in config.attention_levels else f"{direction}Block2D"


def _zero_last_layers(model: nn.Module) -> None:
    """Let every residual branch, and the network, start at zero, as latent-diffusion does and diffusers does not."""
    last_layers: list[Any] = [model.conv_out]
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            last_layers.append(module.conv2)
        elif isinstance(module, Attention):
            last_layers.append(module.to_out[0])
        elif isinstance(module, InceptionMixerBlock):
            last_layers += [module.mixer.project, module.mlp[-1]]
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

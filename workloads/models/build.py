"""From a model's configuration to the network. A new architecture is a class in config/models.py and a line here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import dtype, nn

from workloads.config.models import AnyModel, DiTConfig, IUNetConfig, LDMUNetConfig
from workloads.errors import CheckpointError, ConfigError
from workloads.models.dit import DIFFUSERS_CLASS, DiT
from workloads.models.iunet import IUNet2DModel
from workloads.models.mixer import InceptionMixerBlock


def build_model(config: AnyModel, *, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    """A network with fresh weights; call it as model(x_BCHW, t_B, class_labels=labels_B).sample.

    With classes, label num_classes means "no class". Raises ConfigError if image_size does not suit the architecture,
    or if it is larger than any machine.
    """
    try:
        config.check_size(image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return BUILDERS[type(config)](config, channels, image_size, num_classes)


def _build_ldm_unet(config: LDMUNetConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    model = UNet2DModel(**_shared_arguments(config, channels, image_size, num_classes))
    _zero_last_layers(model)
    return model


def _build_iunet(config: IUNetConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
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


def _build_dit(config: DiTConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    return DiT(
        sample_size=image_size,
        in_channels=channels,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        mlp_ratio=config.mlp_ratio,
        num_class_embeds=None if num_classes is None else num_classes + 1,
        learned_variance=config.variance == "learned",
        frequency_shift=config.frequency_shift,
    )


BUILDERS: dict[type, Callable[..., ModelMixin]] = {
    LDMUNetConfig: _build_ldm_unet,
    IUNetConfig: _build_iunet,
    DiTConfig: _build_dit,
}


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


WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file save_pretrained writes weights to."""

NETWORK = "config.json"
"""And the one it writes the architecture to."""

CLASSES: dict[str, type] = {"UNet2DModel": UNet2DModel, "IUNet2DModel": IUNet2DModel, "DiT": DiT}
"""By the name save_pretrained writes into config.json."""

EXPORTED: dict[str, type] = CLASSES | {DIFFUSERS_CLASS: DiTTransformer2DModel}
"""With what only an export has."""


def load_model(path: Path, torch_dtype: dtype | None = None) -> ModelMixin:
    """The network save_pretrained wrote, whichever class it is. Raises CheckpointError if there is none."""
    try:
        # No pickle, which could run code; no download; no warning that accelerate is missing.
        return _class_of(path).from_pretrained(
            path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=torch_dtype
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} holds no network: {str(error).splitlines()[0]}") from None


def new_model(path: Path) -> ModelMixin:
    """A network of the architecture save_config wrote, with fresh weights."""
    cls = _class_of(path)
    return cls.from_config(cls.load_config(path, local_files_only=True))


def _class_of(path: Path) -> Any:
    return EXPORTED[json.loads((path / NETWORK).read_text())["_class_name"]]

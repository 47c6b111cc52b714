"""From a model's configuration to the network. A new architecture is a class in config/models.py and two lines here."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import dtype

from workloads.config.models import AnyModel, DiTConfig, IUNetConfig, LDMUNetConfig
from workloads.errors import CheckpointError, ConfigError


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


def _build_ldm_unet(*arguments: Any) -> ModelMixin:
    from workloads.models.unets import build_ldm_unet

    return build_ldm_unet(*arguments)


def _build_iunet(*arguments: Any) -> ModelMixin:
    from workloads.models.unets import build_iunet

    return build_iunet(*arguments)


def _build_dit(config: DiTConfig, channels: int, image_size: int, num_classes: int | None) -> ModelMixin:
    from workloads.models.dit import DiT  # and timm, which U-Nets do without

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


WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file save_pretrained writes weights to."""

NETWORK = "config.json"
"""And the one it writes the architecture to."""

DIFFUSERS_CLASS = "DiTTransformer2DModel"
"""What a DiT of ours is exported as."""

CLASSES = {
    "UNet2DModel": "workloads.models.iunet",
    "IUNet2DModel": "workloads.models.iunet",
    "DiT": "workloads.models.dit",
    DIFFUSERS_CLASS: "diffusers",
}
"""The module of a network's class, by the name that save_pretrained writes into config.json."""


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
    name = json.loads((path / NETWORK).read_text())["_class_name"]
    return getattr(import_module(CLASSES[name]), name)

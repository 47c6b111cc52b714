"""Weights of a network made those of one with other classes, variance or positions, where the meaning is clear."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.config.job import InitialConversion
from workloads.errors import ConfigError
from workloads.models.dit import DiT

CLASS_TABLES = ("y_embedder.embedding_table.weight", "class_embedding.weight")
"""A row per class, and a last one for "no class"; of a DiT, and of a U-Net."""

OUTPUT = "final_layer.linear"
POSITIONS = "pos_embed"

# Axes: P pixels of a patch, C channels, L tokens, D channels of a token.


def convert(
    file: Path, weights: Mapping[str, Tensor], model: nn.Module, conversion: InitialConversion
) -> dict[str, Tensor]:
    """The weights as those of `model`, as far as asked for. ConfigError with both shapes where it is not asked for."""
    where, converted = f"initial_weights {file}", dict(weights)
    ours: dict[str, Tensor] = model.state_dict()
    for name in CLASS_TABLES:
        converted |= _classes(where, name, weights.get(name), ours.get(name), conversion.classes)
    if conversion.classes is not None and not any(name in ours for name in CLASS_TABLES):
        raise ConfigError(
            f"initial_conversion.classes is {list(conversion.classes)}, and this model is not told the class; "
            "leave it out, or set data.class_conditional to true"
        )
    if isinstance(model, DiT):
        converted |= _variance(where, weights, model, is_allowed=conversion.variance)
        converted |= _positions(where, weights, model, is_allowed=conversion.positions)
    return converted


def _classes(
    where: str, name: str, theirs: Tensor | None, ours: Tensor | None, classes: tuple[int | str, ...] | None
) -> dict[str, Tensor]:
    if theirs is None and ours is None:
        return {}
    if theirs is None or ours is None:
        known, wanted = ("without", "false") if theirs is None else ("with", "true")
        shape = list((ours if theirs is None else theirs).shape)  # type: ignore[union-attr]
        owner = "this model has" if theirs is None else "it has"
        raise ConfigError(
            f"{where} was trained {known} classes ({owner} {name} {shape}, the other none); "
            f"set data.class_conditional to {wanted}"
        )
    if classes is None:
        if theirs.shape[0] != ours.shape[0]:
            raise ConfigError(
                f"{where} knows {len(theirs) - 1} classes and the data has {len(ours) - 1}: its {name} is "
                f"{list(theirs.shape)}, this model's {list(ours.shape)}; say which of its classes each of the data's "
                "is, with initial_conversion.classes: [...]"
            )
        return {}
    if len(classes) != len(ours) - 1:
        raise ConfigError(
            f"initial_conversion.classes has {len(classes)} numbers, and the data has {len(ours) - 1} classes"
        )
    rows = _rows(where, classes, len(theirs) - 1)
    if max(rows) >= len(theirs) - 1:
        raise ConfigError(f"initial_conversion.classes names class {max(rows)}, and {where} has 0 to {len(theirs) - 2}")
    return {name: theirs[[*rows, len(theirs) - 1]]}


def _rows(where: str, classes: Sequence[int | str], num_classes: int) -> list[int]:
    """Numbers of classes some of which are named by ImageNet's synsets."""
    named = [one for one in classes if isinstance(one, str)]
    if not named:
        return [int(one) for one in classes]
    from timm.data import ImageNetInfo

    synsets: list[str] = ImageNetInfo("imagenet-1k").label_names()
    if num_classes != len(synsets):
        raise ConfigError(
            f"initial_conversion.classes names {named[0]} of ImageNet's {len(synsets)} classes, and {where} knows "
            f"{num_classes}, which may be others; give their numbers"
        )
    numbers = {synset: number for number, synset in enumerate(synsets)}
    if unknown := [synset for synset in named if synset not in numbers]:
        raise ConfigError(
            f"initial_conversion.classes names {unknown[0]}, which is none of the {len(synsets)} classes of ImageNet; "
            "look it up in their list, which begins with n01440764"
        )
    return [numbers[one] if isinstance(one, str) else int(one) for one in classes]


def _variance(where: str, weights: Mapping[str, Tensor], model: DiT, *, is_allowed: bool) -> dict[str, Tensor]:
    """A pixel's channels come together: first those of the mean, then those of the variance."""
    config: Any = model.config
    theirs, ours = weights.get(f"{OUTPUT}.weight"), model.final_layer.linear.weight
    num_pixels = config.patch_size**2
    with_variance = 2 * config.in_channels * num_pixels
    if theirs is None or {len(theirs), len(ours)} != {with_variance, with_variance // 2}:
        return {}
    if not is_allowed:
        kind = "learned" if len(theirs) == with_variance else "fixed"
        raise ConfigError(
            f"{where} has a {kind} variance: its {OUTPUT}.weight is {list(theirs.shape)}, this model's "
            f"{list(ours.shape)}; set model.variance to {kind}, or initial_conversion.variance to true"
        )
    converted = {}
    for name in (f"{OUTPUT}.weight", f"{OUTPUT}.bias"):
        mean_PC = weights[name].reshape(num_pixels, -1, *weights[name].shape[1:])[:, : config.in_channels]
        parts = [mean_PC] if len(ours) < with_variance else [mean_PC, torch.zeros_like(mean_PC)]
        converted[name] = torch.cat(parts, 1).flatten(0, 1)
    return converted


def _positions(where: str, weights: Mapping[str, Tensor], model: DiT, *, is_allowed: bool) -> dict[str, Tensor]:
    theirs_LD, ours_LD = weights.get(POSITIONS), model.pos_embed
    if theirs_LD is None or theirs_LD.ndim != 3 or theirs_LD.shape[1] == ours_LD.shape[1]:
        return {}
    if theirs_LD.shape[::2] != ours_LD.shape[::2]:
        return {}
    side, ours = round(theirs_LD.shape[1] ** 0.5), round(ours_LD.shape[1] ** 0.5)
    if side**2 != theirs_LD.shape[1]:
        return {}
    if not is_allowed:
        raise ConfigError(
            f"{where} is of a grid of {side} x {side} tokens: its {POSITIONS} is {list(theirs_LD.shape)}, this model's "
            f"{list(ours_LD.shape)} ({ours} x {ours}); set data.image_size to {side * _patch(model)}, or "
            "initial_conversion.positions to true"
        )
    grid = theirs_LD.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(ours, ours), mode="bicubic", align_corners=False)
    return {POSITIONS: resized.permute(0, 2, 3, 1).flatten(1, 2)}


def _patch(model: DiT) -> int:
    config: Any = model.config
    patch: int = config.patch_size
    return patch

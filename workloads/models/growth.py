"""A remix that starts from a trained smaller one: more experts, more bases, and at first the same function.

Remix-DiT (arXiv:2412.05628) trains every N and K by itself; this is ours. An expert's interval is split by giving both
parts its coefficients. A basis is split by sharing its coefficients between two copies, alpha -> (w alpha,
(1 - w) alpha), which changes no mixture. With the same w for all experts the copies' gradients would stay proportional
for ever, so w differs between the experts of the cleaner and of the noisier side of where the basis is used.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workloads.config.intervals import IntervalTable
from workloads.errors import ConfigError
from workloads.models.remix import REMIX_WEIGHTS, Bases, Mixer, MixingConfig, mixed_names

# Axes: N experts, L layers (1 where all share coefficients), K bases.

KEPT_SHARE = 0.9
"""Of a split basis's coefficients: what the original keeps on the cleaner side, and the copy gets on the noisier."""

GROWING_MIXERS = {"softmax", "per_layer", "raw"}
"""Those whose coefficients are a free table."""

TINY = 1e-30
"""Stands for zero under a logarithm or a division."""


def is_remix(file: Path) -> bool:
    """Whether initial weights are those of a remix rather than of a plain network."""
    return file.name == REMIX_WEIGHTS


def growth_metadata(table: IntervalTable) -> dict[str, str]:
    """What a file of remix weights says of its intervals; one entry, for safetensors writes several in any order."""
    return {"intervals": json.dumps([list(table.cuts), table.num_timesteps])}


@dataclass(frozen=True)
class Seed:
    """The trained remix that another grows from."""

    file: Path
    tensors: dict[str, Tensor]
    table: IntervalTable | None
    """Its intervals; None if the file does not say them."""

    @property
    def coefficients_NLK(self) -> Tensor:
        return self.tensors["coefficients"]


def read_seed(file: Path) -> Seed:
    """ConfigError if the file holds no remix."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"initial_weights {file} cannot be read: {str(error).splitlines()[0]}") from None
    if "coefficients" not in tensors:
        raise ConfigError(f"initial_weights {file} holds no remix: it has no coefficients")
    table = IntervalTable(*json.loads(metadata["intervals"])) if "intervals" in metadata else None
    return Seed(file, tensors, table)


def check_growth(file: Path, model: nn.Module, remix: MixingConfig, table: IntervalTable) -> None:
    """Raise ConfigError unless a remix of `model` can start from the file and keep its function."""
    seed = read_seed(file)
    num_experts, num_rows, num_bases = seed.coefficients_NLK.shape
    where = f"initial_weights {file}"
    if remix.mixer not in GROWING_MIXERS:
        raise ConfigError(
            f"{where} is a remix, and strategy.mixer {remix.mixer} has no free coefficients to take over; "
            f"use one of {', '.join(sorted(GROWING_MIXERS))}"
        )
    for name, old, new in (("num_experts", num_experts, len(table)), ("num_bases", num_bases, remix.num_bases)):
        if new < old:
            raise ConfigError(f"{where} has {name} {old}, and strategy.{name} is {new}; a remix can only grow")
    if num_rows > 1 and remix.mixer != "per_layer":
        raise ConfigError(f"{where} has coefficients per layer; set strategy.mixer to per_layer (it is {remix.mixer})")
    _check_distribution(seed, remix)
    _owners(seed, table)
    _check_tensors(seed, model, set(mixed_names(model, remix.mixed)))


def _check_distribution(seed: Seed, remix: MixingConfig) -> None:
    """A softmax yields positive coefficients that sum to 1."""
    table_NLK = seed.coefficients_NLK
    is_one = bool((table_NLK >= 0).all()) and bool(((table_NLK.sum(-1) - 1).abs() < 1e-4).all())
    if remix.mixer != "raw" and not is_one:
        raise ConfigError(
            f"initial_weights {seed.file} has coefficients that are no shares of one; set strategy.mixer to raw"
        )


def _owners(seed: Seed, table: IntervalTable) -> list[int]:
    """Which old expert each new interval lies in. ConfigError if one lies in several."""
    if seed.table is None:
        if len(seed.coefficients_NLK) == len(table):
            return list(range(len(table)))
        raise ConfigError(
            f"initial_weights {seed.file} does not say its intervals, as files of earlier versions; it can only start "
            f"a remix of {len(seed.coefficients_NLK)} experts, not of {len(table)}"
        )
    if seed.table.num_timesteps != table.num_timesteps:
        raise ConfigError(
            f"initial_weights {seed.file} has {seed.table.num_timesteps} timesteps, and diffusion.num_timesteps is "
            f"{table.num_timesteps}; make them equal"
        )
    missing = [cut for cut in seed.table.cuts if cut not in table.cuts]
    if missing:
        raise ConfigError(
            f"initial_weights {seed.file} has a cut at {missing[0]} that the new experts lack; keep its cuts, for "
            f"instance with a multiple of its {len(seed.table)} experts"
        )
    return [seed.table.expert_of(interval.lo) for interval in table]


def _check_tensors(seed: Seed, model: nn.Module, mixed: Collection[str]) -> None:
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in ours.items():
        key = f"bases.{name}" if name in mixed else f"shared.{name}"
        found = seed.tensors.get(key)
        if found is None:
            raise ConfigError(
                f"initial_weights {seed.file} is of another remix: it has no {key}; use its model and strategy.mixed"
            )
        kept = tuple(found.shape[1:]) if key.startswith("bases.") else tuple(found.shape)
        if kept != shape:
            raise ConfigError(
                f"initial_weights {seed.file} is of another network: its {name} is {list(kept)}, this model's "
                f"{list(shape)}"
            )


@torch.no_grad()
def grow(file: Path, model: nn.Module, bases: Bases, mixer: Mixer, table: IntervalTable) -> None:
    """Put the trained remix into a fresh one that check_growth has accepted; every mixture stays what it was."""
    seed = read_seed(file)
    table_NLK = seed.coefficients_NLK[_owners(seed, table)]
    sources, table_NLK = split_bases(table_NLK, len(bases.vectors))
    tensors = seed.tensors.items()
    shared = {name.removeprefix("shared."): tensor for name, tensor in tensors if name.startswith("shared.")}
    # Not strict: mixed parameters follow, in the bases.
    model.load_state_dict(shared, strict=False)
    for row_P, source in zip(bases.storage_KP, sources, strict=True):
        for name, view in zip(bases.names, bases.views(row_P), strict=True):
            view.copy_(seed.tensors[f"bases.{name}"][source])
    parameter: Any = mixer.get_parameter("table_NLK")
    logits_or_shares = table_NLK.clamp(min=TINY).log() if mixer.logits(torch.tensor([0])) is not None else table_NLK
    parameter.copy_(logits_or_shares.expand_as(parameter))


def split_bases(table_NLK: Tensor, num_bases: int) -> tuple[list[int], Tensor]:
    """Which old basis each of num_bases new ones is a copy of, and their coefficients; sums over copies stay the same.

    The bases that carry most are split first, each once before any is split again.
    """
    num_old = table_NLK.shape[-1]
    order = table_NLK.abs().sum((0, 1)).argsort(descending=True).tolist()
    sources = list(range(num_old)) + [order[index % num_old] for index in range(num_bases - num_old)]
    columns = list(table_NLK.unbind(-1))
    place_N1 = torch.arange(len(table_NLK), dtype=table_NLK.dtype)[:, None]
    for source in sources[num_old:]:
        whole_NL = columns[source]
        weight_N1 = whole_NL.abs().mean(1, keepdim=True)
        middle = (place_N1 * weight_N1).sum() / weight_N1.sum().clamp(min=TINY)
        kept_N1 = torch.where(place_N1 < middle, KEPT_SHARE, 1 - KEPT_SHARE)
        columns[source] = kept_N1 * whole_NL
        # A difference, so that the two add up to what was there.
        columns.append(whole_NL - columns[source])
    return sources, torch.stack(columns, -1)

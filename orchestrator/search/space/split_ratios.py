"""Shares of attention that the heads of an iU-Net can realise. Pure."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import model_validator

from orchestrator.search.space.context import Context
from orchestrator.search.space.laws import draw_rising
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import NumberSource
from workloads.config.base import Flag, StrictConfig
from workloads.config.load import validate
from workloads.config.models import IUNetConfig, Share
from workloads.errors import ConfigError

SPLIT_RATIOS_PATH = re.compile(r"(strategy\.experts\.\*\.)?model\.attention_share")


class SplitRatiosLaw(StrictConfig):
    """Which of the shares that a level's whole heads can make."""

    at_least: Share | None = None
    """Smallest share; None: one head."""

    at_most: Share | None = None
    """Largest share; None: the largest below 1."""

    monotone: Flag = False
    """At each level, shares do not fall as the expert index rises (MEME's design rule)."""

    same_for_all_levels: Flag = False
    """One share for all levels of a network."""

    @model_validator(mode="after")
    def _check(self) -> "SplitRatiosLaw":
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} exceeds at_most {self.at_most}")
        return self


class SplitRatios(StrictConfig):
    """`attention_share` of an iU-Net, or of every MEME expert: one share per mixer level, equally likely each."""

    split_ratios: SplitRatiosLaw

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:
        networks = self._networks(path, context)
        if self.split_ratios.monotone:
            columns = [
                draw_rising(source, f"{path}.{level}", shares, len(networks))
                for level, shares in enumerate(_common(path, networks))
            ]
            return _written(networks, zip(*columns, strict=True))
        rows = (
            [
                shares[source.whole(f"{place}.{level}", 0, len(shares) - 1)]
                for level, shares in enumerate(network.shares)
            ]
            for place, network in networks.items()
        )
        return _written(networks, rows)

    def grid(self, path: str, context: Context) -> Iterator[Values]:
        networks = self._networks(path, context)
        if self.split_ratios.monotone:
            columns = (
                itertools.combinations_with_replacement(shares, len(networks)) for shares in _common(path, networks)
            )
            tables: Iterable[Iterable[Sequence[Fraction]]] = (
                zip(*table, strict=True) for table in itertools.product(*columns)
            )
        else:
            tables = itertools.product(*(itertools.product(*network.shares) for network in networks.values()))
        for rows in tables:
            yield _written(networks, rows)

    def _networks(self, path: str, context: Context) -> dict[str, "_Network"]:
        """By path: what each network allows."""
        return {
            place: self._network(path, place.removesuffix(".attention_share"), context)
            for place in context.spread(path)
        }

    def _network(self, path: str, section: str, context: Context) -> "_Network":
        law, model = self.split_ratios, _iunet(path, section, context)
        widths = [model.widths[level] for level in model.mixer_levels]
        shares = [self._between(_whole_heads(width, model.head_dim)) for width in widths]
        if law.same_for_all_levels:
            shares = [tuple(share for share in shares[0] if all(share in others for others in shares))]
        if not all(shares):
            units = ", ".join(
                f"{Fraction(model.head_dim, width)} at level {level}"
                for level, width in zip(model.mixer_levels, widths, strict=True)
            )
            raise ConfigError(
                f"space.{path}: no share between {law.at_least or 0} and {law.at_most or 1} will do for "
                f"{'all levels' if law.same_for_all_levels else 'each level'} of {section}; "
                f"its shares are multiples of {units}"
            )
        return _Network(tuple(shares), len(widths) if law.same_for_all_levels else 1)

    def _between(self, shares: Iterable[Fraction]) -> tuple[Fraction, ...]:
        law = self.split_ratios
        return tuple(
            share
            for share in shares
            # Unless told otherwise, a mixer has some attention and something beside it.
            if (share > 0 if law.at_least is None else share >= law.at_least)
            and (share < 1 if law.at_most is None else share <= law.at_most)
        )


@dataclass(frozen=True)
class _Network:
    shares: tuple[tuple[Fraction, ...], ...]
    """What to choose from, for each level or for all alike."""

    num_repeats: int
    """How often a choice is repeated to have one per level."""


class _UndrawnIUNet(IUNetConfig):
    """An iU-Net whose shares are not known yet."""

    attention_share: Any = None

    @model_validator(mode="after")
    def _check_mixers(self) -> "_UndrawnIUNet":
        if not self.mixer_levels or max(self.mixer_levels) >= len(self.channel_mult):
            raise ValueError(f"mixer_levels is {list(self.mixer_levels)}, of levels 0 to {len(self.channel_mult) - 1}")
        return self


def _iunet(path: str, section: str, context: Context) -> IUNetConfig:
    raw = context.model(section)
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind != "iunet":
        raise ConfigError(f"space.{path}: {section} is of kind {kind}; split_ratios needs kind iunet")
    try:
        return validate(_UndrawnIUNet, raw)
    except ConfigError as error:
        raise ConfigError(f"{section}: {error}") from None


def _whole_heads(width: int, head_dim: int) -> Iterator[Fraction]:
    """Shares that are whole heads and leave an even number of channels, half for pooling and half for convolution."""
    return (Fraction(used, width) for used in range(0, width + 1, head_dim) if (width - used) % 2 == 0)


def _common(path: str, networks: dict[str, _Network]) -> list[tuple[Fraction, ...]]:
    """For each level: what all networks allow."""
    # Monotone means level by level, so all must have the same levels.
    if len({len(network.shares) for network in networks.values()}) > 1:
        raise ConfigError(f"space.{path}: experts differ in their number of mixer_levels; set monotone to false")
    first, *others = [network.shares for network in networks.values()]
    common = [
        tuple(share for share in shares if all(share in other[level] for other in others))
        for level, shares in enumerate(first)
    ]
    if not all(common):
        raise ConfigError(f"space.{path}: experts' widths have no share in common; set monotone to false")
    return common


def _written(networks: dict[str, _Network], rows: Iterable[Sequence[Fraction]]) -> Values:
    return {
        # As text: JSON has no exact 1/3.
        place: [str(share) for share in row] * network.num_repeats
        for (place, network), row in zip(networks.items(), rows, strict=True)
    }

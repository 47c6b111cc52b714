"""Which of the tensors in a checkpoint are the network's: under a key, behind a prefix, averaged or not."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from workloads.errors import ConfigError

DEEPEST = 8
"""Containers within containers that are looked into."""

AVERAGE = re.compile(r"(^|[._\- ])(ema|swa|polyak|shadow|averaged?)(\d|[._\- ]|$)|EMA")
"""What a key is called that holds averaged weights."""


@dataclass(frozen=True)
class StateDict:
    """Tensors of one network within a checkpoint."""

    keys: tuple[str, ...]
    """Under which they lie."""

    prefix: str
    """What stands before each of the network's names, for instance `module.`."""

    tensors: dict[str, Tensor]
    """By name without the prefix."""

    form: int
    """Which of the ways to call them these names are."""

    share: float
    """How many of the network's names are there."""

    @property
    def is_average(self) -> bool:
        """Whether key or prefix call it one."""
        return any(map(_is_average, (*self.keys, self.prefix)))

    @property
    def place(self) -> str:
        """For people."""
        keys = f"under {'.'.join(self.keys)}" if self.keys else ""
        prefix = f"behind the prefix {self.prefix!r}" if self.prefix else ""
        return " ".join(part for part in (keys, prefix) if part) or "at the top"


def find_state_dict(file: Path, content: Any, forms: Sequence[Collection[str]]) -> StateDict:
    """The tensors that are called as the network's; of several, the averaged ones.

    forms: the names a network's tensors have, in one or several ways. ConfigError if there are none, or if it is open
    which are meant.
    """
    where = f"initial_weights {file}"
    places = list(_places(content, (), set()))
    if not places:
        raise ConfigError(f"{where} holds no state dict (a map of names to tensors)")
    found = [
        one
        for keys, tensors in places
        for number, wanted in enumerate(forms)
        for one in _with_prefixes(keys, tensors, number, wanted)
    ]
    if not found:
        largest: Mapping[str, Tensor] = max((tensors for _, tensors in places), key=len)
        shown = ", ".join(list(largest)[:3])
        raise ConfigError(
            f"{where} is of another network: it has {shown}, ..., and nothing called {min(forms[0])}; "
            "set model to the network it is of"
        )
    most = max(one.share for one in found)
    best = [one for one in found if one.share == most]
    averages = [one for one in best if one.is_average]
    chosen = averages or best
    # Where most names are missing it is another network, which is said when names are compared.
    if len(chosen) > 1 and most > 0.5:
        shown = ", ".join(one.place for one in chosen)
        raise ConfigError(f"{where} holds the network {len(chosen)} times ({shown}); save the one you mean by itself")
    if not averages and (other := _unread_average(places)) is not None:
        raise ConfigError(
            f"{where} holds averaged weights ({other}) under names that are not this network's; "
            "save the weights you mean by themselves, as a map of names to tensors"
        )
    return chosen[0]


def _is_average(key: str) -> bool:
    return AVERAGE.search(key) is not None


def _places(node: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every container that holds tensors, once, with its keys."""
    if not isinstance(node, Mapping | list | tuple) or len(keys) > DEEPEST or id(node) in seen:
        return
    seen.add(id(node))
    items = list(node.items() if isinstance(node, Mapping) else enumerate(node))
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in items:
        yield from _places(value, (*keys, str(key)), seen)


def _with_prefixes(
    keys: tuple[str, ...], tensors: Mapping[str, Tensor], form: int, wanted: Collection[str]
) -> Iterator[StateDict]:
    known: Counter[str] = Counter()
    for name in tensors:
        # Every end of the name, from all of it to its last word.
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        known.update(name[:start] for start in starts if name[start:] in wanted)
    for prefix, number in known.items():
        behind = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        yield StateDict(keys, prefix, behind, form, number / len(wanted))


def _unread_average(places: list[tuple[tuple[str, ...], dict[str, Tensor]]]) -> str | None:
    """Where tensors lie that are called an average."""
    for keys, tensors in places:
        if any(map(_is_average, keys)):
            return ".".join(keys)
        for name, tensor in tensors.items():
            # A single number is a decay or a count.
            if tensor.ndim > 0 and _is_average(name):
                return name
    return None

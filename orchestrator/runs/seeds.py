"""Runs that differ in their seed alone, as comparisons name them."""

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

SEED = re.compile(r"-seed(\d+)$")


class Named(Protocol):
    """Something of a run."""

    @property
    def name(self) -> str:
        """The run's, in its description."""


AnyNamed = TypeVar("AnyNamed", bound=Named)


def by_row(found: Sequence[AnyNamed]) -> dict[str, list[AnyNamed]]:
    """What has the same name but for the seed at its end, in the order of its first."""
    rows: dict[str, list[AnyNamed]] = {}
    for one in found:
        rows.setdefault(SEED.sub("", one.name), []).append(one)
    return rows


def seed_of(name: str) -> str:
    """The seed at a name's end; empty if there is none."""
    match = SEED.search(name)
    return match[1] if match else ""

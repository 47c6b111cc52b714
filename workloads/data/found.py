"""What was found in a source: printed for people, and stored with the prepared data."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from workloads.config.base import StrictConfig
from workloads.data.pictures import SeenPicture
from workloads.errors import DataError
from workloads.sealed import load_json

NUM_NAMED = 3
"""Bad pictures that a message names."""


class LeftOut(StrictConfig):
    """Files that are no pictures of this data set, and were not read."""

    reason: str
    count: int
    example: str


class BadItem(StrictConfig):
    """A picture that should have been read and could not be."""

    name: str
    reason: str
    """In a few words, shared by many."""

    detail: str


class Tally(StrictConfig):
    """What the pictures that were read are like; tallies of parts add up."""

    num_images: int = 0
    forms: dict[str, int] = Field(default_factory=dict)
    """Number of pictures by format and mode."""

    treatment: dict[str, int] = Field(default_factory=dict)
    """Number of pictures by what was done to them."""

    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    """Width and height of the pictures with the fewest and the most pixels."""

    def __add__(self, other: "Tally") -> "Tally":
        sizes = [size for one in (self, other) for size in (one.smallest, one.largest) if size is not None]
        return Tally(
            num_images=self.num_images + other.num_images,
            forms=dict(Counter(self.forms) + Counter(other.forms)),
            treatment=dict(Counter(self.treatment) + Counter(other.treatment)),
            smallest=min(sizes, key=_area, default=None),
            largest=max(sizes, key=_area, default=None),
        )


class Counting:
    """Counts pictures as they come."""

    def __init__(self) -> None:
        self._forms: Counter[str] = Counter()
        self._treatment: Counter[str] = Counter()
        self._sizes: set[tuple[int, int]] = set()

    def add(self, picture: SeenPicture) -> None:
        self._forms[picture.form] += 1
        self._treatment.update(picture.treatment)
        self._sizes.add(picture.size)
        if len(self._sizes) > 1000:
            self._sizes = {min(self._sizes, key=_area), max(self._sizes, key=_area)}

    def tally(self) -> Tally:
        return Tally(
            num_images=self._forms.total(),
            forms=dict(self._forms),
            treatment=dict(self._treatment),
            smallest=min(self._sizes, key=_area, default=None),
            largest=max(self._sizes, key=_area, default=None),
        )


class ClassCount(NamedTuple):
    """How many pictures a class has."""

    name: str
    num_images: int


class SourceContents(StrictConfig):
    """All that is to be said about a source."""

    source: str
    """For people: where the images came from."""

    classes: tuple[ClassCount, ...]
    tally: Tally
    remarks: tuple[str, ...] = ()
    """How the source was understood."""

    left_out: tuple[LeftOut, ...] = ()
    bad: tuple[BadItem, ...] = ()

    @property
    def empty_classes(self) -> list[str]:
        """Classes without a picture."""
        return [one.name for one in self.classes if one.num_images == 0]


class LeftOutFiles:
    """Gathers what is left out, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self._counts[reason] += 1
        self._examples.setdefault(reason, printable(name))

    def summary(self) -> tuple[LeftOut, ...]:
        return tuple(
            LeftOut(reason=reason, count=count, example=self._examples[reason])
            for reason, count in self._counts.most_common()
        )


def printable(name: str) -> str:
    """A name from a disk, with the bytes escaped that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def on_one_line(text: str) -> str:
    """The same with line ends and other control characters escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def check_bad(bad: Sequence[BadItem], max_bad: int, *, are_all: bool = False) -> None:
    """DataError, with reasons and names, if there are more bad pictures than allowed.

    are_all: whether every picture has been looked at, or more may be bad.
    """
    if len(bad) <= max_bad:
        return
    way_out = f"allow that with --max-bad {len(bad)}" if are_all else "see all of them with: rememe data check"
    if len(bad) == 1 or (max_bad == 0 and not are_all):
        raise DataError(f"{on_one_line(bad[0].name)} does not decode: {bad[0].detail}; mend or remove it, or {way_out}")
    raise DataError(
        f"{len(bad)} images do not decode ({summary_of_bad(bad)}), more than --max-bad {max_bad}; mend or remove them, "
        f"or {way_out}"
    )


def summary_of_bad(bad: Sequence[BadItem]) -> str:
    """Reasons with their numbers, and some names."""
    counts = Counter(one.reason for one in bad).most_common()
    names = ", ".join(one.name for one in bad[:NUM_NAMED]) + (", ..." if len(bad) > NUM_NAMED else "")
    return "; ".join([", ".join(f"{count} {reason}" for reason, count in counts), names])


def read_found(file: Path) -> SourceContents | None:
    """What was stored; None if there is nothing, as with data prepared by an earlier version."""
    if not file.is_file():
        return None
    try:
        return SourceContents.model_validate(load_json(file))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({str(error).splitlines()[0]}); remove it, nothing else needs it") from None


def _area(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return size[0] * size[1], size

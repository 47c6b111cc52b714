"""From the labels that a source holds to numbered classes with names; what is no class is refused, never rounded."""

import math
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

from workloads.config.data import SparseLabels
from workloads.errors import DataError

ONE_CLASS = "all"
"""Name of the class of images that have none."""

NO_LABELS = "none"
"""What is said in the place of a column for images to be of one class."""

LABEL_NAMES = ("label", "labels", "class", "target", "category")
"""Names of columns that are taken where one of them is there and none is named."""

MAX_CLASSES = 1_000_000
"""What a network could still be told apart by; a label beyond is no class number."""


class Classes(NamedTuple):
    """What the labels of a source stand for."""

    names: tuple[str, ...]
    number_of: dict[Hashable, int]
    """Class of each label as it stands in the source."""


def numbered(
    labels: Collection[Any], *, names: tuple[str, ...] | None, sparse: SparseLabels, locate: Callable[[Any], str]
) -> Classes:
    """Classes of the distinct labels: whole numbers as they are, words and booleans in their order.

    names: what the source calls its classes. locate: where a label stands, for the DataError about one that is none.
    """
    kinds = {type(label) for label in labels}
    if kinds <= {str} or kinds <= {bool}:
        ordered = sorted(labels)
        shown = tuple(label if isinstance(label, str) else str(label).lower() for label in ordered)
        return Classes(shown, {label: number for number, label in enumerate(ordered)})
    if not kinds <= {int, float}:
        odd = next(label for label in labels if type(label) not in {int, float})
        raise DataError(f"{locate(odd)}: the label {odd!r} is of another type than the others; labels must be of one")
    for label in sorted(labels):
        _check_number(label, names, locate)
    return _numbers(sorted(labels), names, sparse, locate)


def _check_number(label: float, names: tuple[str, ...] | None, locate: Callable[[Any], str]) -> None:
    advice = "mend it, or read all images as one class with --label-column none"
    if not math.isfinite(label) or label != int(label):
        raise DataError(f"{locate(label)}: the label {label:g} is no class, for it is no whole number; {advice}")
    if label < 0:
        raise DataError(f"{locate(label)}: the label {label:g} is no class; leave such images out, or {advice}")
    if names is not None and label >= len(names):
        raise DataError(
            f"{locate(label)}: label {label:g} is outside the {len(names)} classes the data names; {advice}"
        )


def _numbers(
    ordered: list[Any], names: tuple[str, ...] | None, sparse: SparseLabels, locate: Callable[[Any], str]
) -> Classes:
    if names is not None:
        return Classes(names, {label: int(label) for label in ordered})
    num_classes = int(ordered[-1]) + 1
    if sparse == "remap":
        return Classes(tuple(str(int(label)) for label in ordered), {label: n for n, label in enumerate(ordered)})
    if sparse == "refuse" and num_classes > max(2 * len(ordered), 16):
        raise DataError(
            f"{locate(ordered[-1])}: labels reach {int(ordered[-1]):,} with {len(ordered)} different values; number "
            f"them 0 to {len(ordered) - 1} with --sparse-labels remap, or let them be with --sparse-labels keep"
        )
    if num_classes > MAX_CLASSES:
        raise DataError(f"{locate(ordered[-1])}: label {int(ordered[-1]):,} is no class; use --sparse-labels remap")
    return Classes(tuple(str(number) for number in range(num_classes)), {label: int(label) for label in ordered})

"""Files that are parts of one whole, by the numbers in their names: whether one is missing, or there twice."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from workloads.config.data import MissingParts
from workloads.errors import DataError

COUNTED = re.compile(
    r"(?P<before>.*?)(?P<number>\d+)(?P<of>[-_. ]?of[-_. ]?)(?P<count>\d+)(?P<after>.*)", re.IGNORECASE
)
NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<after>\D*)")
HASH = re.compile(r"-[0-9a-f]{8,}(?=\.|$)")
"""What Hugging Face's older uploads put behind the number of a part."""

NUM_NAMED = 3
MAX_PARTS = 1_000_000


class _Part(NamedTuple):
    number: int
    name: str


def check_parts(paths: Sequence[Sequence[str]], where: str, missing: MissingParts) -> list[str]:
    """Remarks about files whose names say that there are more of them.

    DataError, with the name, where one that the others count is not there (unless that is accepted) or is there twice.
    """
    counted: dict[tuple[str, ...], dict[int, list[_Part]]] = defaultdict(lambda: defaultdict(list))
    numbered: dict[tuple[str, ...], list[_Part]] = defaultdict(list)
    for *folders, name in paths:
        if (found := COUNTED.fullmatch(name)) is not None:
            key = (*folders, found["before"], HASH.sub("", found["after"]))
            counted[key][int(found["count"])].append(_Part(int(found["number"]), name))
        elif (found := NUMBERED.fullmatch(name)) is not None:
            numbered[*folders, found["before"], found["after"]].append(_Part(int(found["number"]), name))
    remarks = [remark for by_count in counted.values() for remark in _check_counted(by_count, where, missing)]
    return remarks + [remark for parts in numbered.values() for remark in _gaps(parts)]


def about_one_part(name: str) -> list[str]:
    """What is to be said when this file alone was asked for."""
    found = COUNTED.fullmatch(name)
    return (
        []
        if found is None or int(found["count"]) < 2
        else [f"{name} alone was read, one of {int(found['count'])} parts"]
    )


def _check_counted(by_count: dict[int, list[_Part]], where: str, missing: MissingParts) -> list[str]:
    if len(by_count) > 1:
        first, second, *_ = (parts[0].name for parts in by_count.values())
        raise DataError(f"{where}: {first} and {second} are of two divisions of the same data; take one of them away")
    ((count, parts),) = by_count.items()
    names: dict[int, str] = {}
    for number, name in parts:
        if number in names:
            raise DataError(f"{where}: {names[number]} and {name} are the same part; take one of them away")
        names[number] = name
    # Most count from 0, some from 1.
    start = 1 if count in names and 0 not in names else 0
    gone = [number for number in range(start, start + min(count, MAX_PARTS)) if number not in names]
    if not gone:
        return []
    shown = _shown([_renumbered(parts[0].name, number) for number in gone])
    if missing == "refuse":
        raise DataError(
            f"{where} lacks {shown}, which the names of its other files count; get the rest, or read what is there "
            "with --missing-parts accept (data.missing_parts)"
        )
    return [f"{len(gone)} of {count} parts are missing: {shown}"]


def _gaps(parts: list[_Part]) -> list[str]:
    numbers = {part.number for part in parts}
    between = max(numbers) - min(numbers) + 1 - len(numbers)
    # Names with other numbers, years for instance, have gaps everywhere.
    if not 0 < between <= len(numbers):
        return []
    gone = [number for number in range(min(numbers), max(numbers)) if number not in numbers]
    return [f"the numbers of files leave out {_shown([_renumbered(parts[0].name, number) for number in gone])}"]


def _renumbered(name: str, number: int) -> str:
    found = COUNTED.fullmatch(name) or NUMBERED.fullmatch(name)
    assert found is not None
    start, end = found.span("number")
    return HASH.sub("", f"{name[:start]}{number:0{end - start}d}{name[end:]}")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else "")

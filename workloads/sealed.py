"""JSON that shows whether it is as it was written: every object carries a checksum of all else in it.

What counts is the content, not the layout. What earlier versions wrote has no checksum and is taken as it is.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from workloads.errors import DamagedFileError
from workloads.files import clear_storage_errors, sha256_file, write_text

logger = logging.getLogger(__name__)
T = TypeVar("T")

CHECKSUM = "checksum"

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What reading JSON of an unexpected form raises."""


def content_hash(payload: Any) -> str:
    """SHA-256 (hex) of JSON-like data, independent of the order of keys."""
    # Never otherwise: the same data in another layout would be another key.
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same plain data with its checksum."""
    return {**content, CHECKSUM: content_hash(content)}


def unsealed(raw: Any) -> dict[str, Any]:
    """The content without its checksum. ValueError unless it is an object as it was written."""
    if not isinstance(raw, dict):
        raise ValueError("it holds no JSON object")
    # Written last; under any other name it does not make an object one of an earlier version.
    name = CHECKSUM if CHECKSUM in raw else next(reversed(raw), CHECKSUM)
    content = {key: value for key, value in raw.items() if key != name}
    is_intact = raw.get(name) == content_hash(content)
    if is_intact != (name == CHECKSUM) and raw:
        raise ValueError("it was changed since it was written")
    return content if is_intact else raw


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by sealed content in one step. StorageError when the disk is full."""
    write_text(file, json.dumps(sealed(content), indent=2))


def load_json(file: Path) -> dict[str, Any]:
    """Content that was sealed. ValueError (or RecursionError) unless it is as it was written."""
    return unsealed(json.loads(file.read_bytes()))


def read_json(file: Path, parse: Callable[[dict[str, Any]], T], next_step: str) -> T:
    """What `parse` makes of sealed content. DamagedFileError, with the next step, if it is not as it was written."""
    try:
        return parse(load_json(file))
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedFileError(f"{file} is damaged: {reason}; {next_step}") from None


def require_intact(file: Path, sha256: str, next_step: str) -> None:
    """DamagedFileError, with the next step, unless the file is there with just these bytes."""
    if not file.is_file():
        raise DamagedFileError(f"{file} is missing; {next_step}")
    if sha256_file(file) != sha256:
        raise DamagedFileError(f"{file} is damaged: it is not as it was written; {next_step}")


def append_line(file: Path, content: Mapping[str, Any]) -> None:
    """Add sealed content to a .jsonl file. StorageError when the disk is full."""
    with clear_storage_errors(file), file.open("a") as opened:
        opened.write(_line_of(content))


def write_lines(file: Path, contents: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl file in one step. StorageError when the disk is full."""
    write_text(file, "".join(map(_line_of, contents)))


def read_lines(file: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """What `parse` makes of each line of a .jsonl file, if there is one.

    A last line cut short by a crash is left out; one that is not as it was written too, with a warning.
    """
    found, damaged = _parsed_lines(file, parse)
    if damaged:
        _warn(file, damaged)
    return found


def num_damaged_lines(file: Path) -> int:
    """How many lines of a .jsonl file are not as they were written; one cut short by a crash is none of them."""
    return _parsed_lines(file, dict)[1]


def _parsed_lines(file: Path, parse: Callable[[dict[str, Any]], T]) -> tuple[list[T], int]:
    found, damaged = [], 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        if line.endswith(b"\n"):
            try:
                found.append(parse(unsealed(json.loads(line))))
            except UNREADABLE:
                damaged += 1
    return found, damaged


@cache
def _warn(file: Path, damaged: int) -> None:
    """Once, for a file that grows is read again and again."""
    logger.warning("%s has %d damaged lines, which are left out", file, damaged)


def _line_of(content: Mapping[str, Any]) -> str:
    return json.dumps(sealed(content)) + "\n"

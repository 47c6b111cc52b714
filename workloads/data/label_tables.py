"""Tables beside pictures that tell their labels: metadata.csv or .jsonl as Hugging Face has them, labels.csv, ..."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from workloads.data.found import printable
from workloads.data.labels import LABEL_NAMES
from workloads.data.splits import COLUMNS, values_of_split
from workloads.data.trees import Parts
from workloads.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
METADATA = "metadata"
"""What Hugging Face calls a table that counts more than folders do."""

NUM_TRIED = 200
"""Rows that are looked at to see which column holds the names of pictures."""

ValuesByColumn = dict[str, list[Any]]
"""Values by column, all of the same number; None where a row has none."""


class LabelTable(NamedTuple):
    """A table that names pictures."""

    place: str
    """What messages call it."""

    is_metadata: bool
    columns: ValuesByColumn
    pictures: list[Parts | None]
    """Of each row; None: none that is there."""

    files: str
    """The column that names them."""

    @property
    def others(self) -> list[str]:
        """ValuesByColumn that may hold labels."""
        return [name for name in self.columns if name != self.files]

    @property
    def candidates(self) -> list[str]:
        """ValuesByColumn that are clearly labels."""
        return [name for name in self.others if name.lower() in LABEL_NAMES]


class PictureNames:
    """Finds pictures by what a table calls them: path, name, or name without suffix."""

    def __init__(self, pictures: Sequence[Parts]) -> None:
        self._paths = set(pictures)
        self._by_name: dict[str, Parts | None] = {}
        for path in pictures:
            for name in {path[-1], PurePosixPath(path[-1]).stem}:
                # A name that several have says nothing.
                self._by_name[name] = None if name in self._by_name else path

    def find(self, text: Any, folder: Parts) -> Parts | None:
        """The picture that is meant, relative to the folder of the table before all else."""
        if not isinstance(text, str | int) or text == "":
            return None
        parts = tuple(part for part in str(text).replace("\\", "/").split("/") if part not in {"", "."})
        for path in ((*folder, *parts), parts):
            if path in self._paths:
                return path
        return self._by_name.get(parts[-1]) if parts else None


def label_table(content: bytes, path: Parts, place: str, pictures: PictureNames) -> LabelTable | None:
    """What a file says about pictures; None if it names none of them, or is no table.

    DataError without a header, or if it is not text as other programs read it.
    """
    text, is_known = _text(content)
    columns = _parsed(text, PurePosixPath(path[-1]).suffix.lower())
    if not columns:
        return None
    hits = {
        name: sum(pictures.find(value, path[:-1]) is not None for value in values[:NUM_TRIED])
        for name, values in columns.items()
    }
    files = max(hits, key=lambda name: hits[name])
    found = [pictures.find(value, path[:-1]) for value in columns[files]] if hits[files] else []
    if not any(found):
        return None
    if not is_known:
        raise DataError(f"{place} names the pictures, but is not text in UTF-8; save it as such (CSV UTF-8 in Excel)")
    # A column may be called image beside a picture image.png.
    if ("." in files or files.isdecimal()) and pictures.find(files, path[:-1]) is not None:
        raise DataError(
            f"{place} has no header: its first row names a picture, {printable(files)}; write the names of its columns "
            "above it, such as file_name and label"
        )
    return LabelTable(place, PurePosixPath(path[-1]).stem.lower() == METADATA, columns, found, files)


class TableLabels(NamedTuple):
    """What tables say of pictures."""

    of_picture: dict[Parts, Any]
    """Labels; None where a row has none."""

    of_another_split: set[Parts]
    not_there: list[str]
    """What rows name that is no picture."""


def choose_tables(
    tables: Sequence[LabelTable], wanted: str | None, *, are_in_folders: bool
) -> list[tuple[LabelTable, str]]:
    """The tables whose labels are meant, and the column of each; none where folders tell the classes.

    wanted: the column that was asked for. DataError, with the choice, if it is not clear which column is meant.
    """
    if wanted is not None:
        return [(table, wanted) for table in tables if wanted in table.others]
    telling = [table for table in tables if table.others]
    counting = [table for table in telling if table.is_metadata] or ([] if are_in_folders else telling)
    clear = [(table, table.candidates[0]) for table in counting if len(table.candidates) == 1]
    several = next((table for table in counting if len(table.candidates) > 1), None)
    if several is None and (clear or are_in_folders or not counting):
        return clear
    unclear = several or counting[0]
    raise DataError(
        f"{unclear.place} names the pictures, and none of its columns is clearly the labels "
        f"({', '.join(unclear.others)}); name one with --label-column (data.label_column), or read all images as one "
        "class with --label-column none"
    )


def labels_of(tables: Sequence[tuple[LabelTable, str]], wanted: str | None) -> TableLabels:
    """Labels by picture, of the wanted split where a column tells splits apart. DataError if a picture has two."""
    found = TableLabels({}, set(), [])
    for table, column in tables:
        is_read = _rows_of_split(table, column, wanted)
        values = _typed(table.columns[column])
        for row, (picture, label) in enumerate(zip(table.pictures, values, strict=True)):
            if picture is None:
                found.not_there.append(str(table.columns[table.files][row]))
            elif not is_read[row]:
                found.of_another_split.add(picture)
            elif found.of_picture.setdefault(picture, label) != label:
                raise DataError(
                    f"{table.place} row {row} gives {printable('/'.join(picture))} the label {label}, which had "
                    f"{found.of_picture[picture]} before; leave one of them"
                )
    return found


def _rows_of_split(table: LabelTable, column: str, wanted: str | None) -> list[bool]:
    for name in table.others:
        splits = table.columns[name]
        if name.lower() in COLUMNS and name != column and all(isinstance(one, str | None) for one in splits):
            values = values_of_split(Counter(splits), wanted, f"{table.place}: the column {name}")
            if values is not None:
                return [one in values for one in splits]
    return [True] * len(table.pictures)


def _text(content: bytes) -> tuple[str, bool]:
    """And whether it is sure; bytes of another encoding are read far enough to see what they are about."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # "Unicode Text" of Excel
        return content.decode("utf-16", "replace"), True
    try:
        return content.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        return content.decode("latin-1"), False


def _parsed(text: str, suffix: str) -> ValuesByColumn | None:
    try:
        return _from_lines(text) if suffix in {".jsonl", ".ndjson"} else _from_csv(text)
    except (ValueError, csv.Error, RecursionError):
        return None


def _from_csv(text: str) -> ValuesByColumn | None:
    head = text.partition("\n")[0]
    delimiter = max("\t;,", key=head.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if len(rows) < 2 or len(set(rows[0])) < len(rows[0]) or any(len(row) > len(rows[0]) for row in rows):
        return None
    header, *body = rows
    return {
        name.strip(): [row[index].strip() or None if index < len(row) else None for row in body]
        for index, name in enumerate(header)
    }


def _from_lines(text: str) -> ValuesByColumn | None:
    rows: list[Mapping[str, Any]] = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        return None
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _typed(values: list[Any]) -> list[Any]:
    """Numbers where all words are numbers."""
    words = [value for value in values if isinstance(value, str)]
    if not words:
        return values
    try:
        kind = int if all(word.lstrip("-").isdecimal() for word in words) else float
        return [kind(value) if isinstance(value, str) else value for value in values]
    except ValueError:
        return values

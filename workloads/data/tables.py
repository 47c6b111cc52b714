"""Images in tables: Parquet files, and Arrow files as Hugging Face's save_to_disk writes them."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from workloads.config.data import ArrowData, ParquetData
from workloads.data.cells import ADDRESSES, content_of, holds_pictures, is_image_struct
from workloads.data.found import LeftOutFiles
from workloads.data.labels import LABEL_NAMES, NO_LABELS, ONE_CLASS, Classes, numbered
from workloads.data.parts import about_one_part, check_parts
from workloads.data.pictures import SUFFIXES
from workloads.data.placed_tables import PlacedTable, rows_of_split
from workloads.data.source import ImageSource, Item, existing
from workloads.data.splits import COLUMNS, files_of_split, split_of_file
from workloads.data.table_files import (
    ARROW_SUFFIXES,
    PARQUET_SUFFIXES,
    ArrowTable,
    ParquetTable,
    TableFile,
    files_of,
    is_hidden,
)
from workloads.data.trees import files_signature
from workloads.errors import DataError

HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "png", "jpg", "jpeg", "webp")
PATH_NAMES = ("file_name",)
"""Names of columns that are taken where one of them is there and none is named; the last ones hold paths."""


class TableSource(ImageSource):
    """A column of pictures and, unless there is to be one class, a column of labels."""

    def __init__(self, config: ParquetData | ArrowData) -> None:
        self._config = config
        self._root = existing(config.path)
        self._folder = self._root if self._root.is_dir() else self._root.parent
        left_out, self._about_files = LeftOutFiles(), list[str]()
        self._parts = self._open(left_out)
        self._image = self._image_column()
        self._label = self._label_column()
        for part in self._parts:
            self._check(part)
        self._parts = self._rows_of_split()
        self.num_images = sum(part.num_rows for part in self._parts)
        if self.num_images == 0:
            raise DataError(f"{self._root} has no rows, so no images; nothing can be prepared from it")
        classes = self._read_classes()
        self.class_names, self._number_of = classes.names, classes.number_of
        self.left_out = left_out.summary()
        origin = f"images from the column {self._image}, labels from {self._label or 'nowhere: one class'}"
        self.remarks = (origin, *self._about_files)

    def items(self, start: int) -> Iterator[Item]:
        position = 0
        for part in self._parts:
            first = max(0, start - position)
            position += part.num_rows
            if first >= part.num_rows:
                continue
            columns = [name for name in (self._image, self._label) if name and name not in part.constants]
            for row, batch in part.table.rows(columns, part.first_row(first)):
                yield from self._items_of(part, row, batch)

    def signature(self) -> str:
        config = self._config
        choices = [config.split, config.image_column, config.label_column, config.one_class, config.sparse_labels]
        usual = [None, None, None, False, "refuse"]
        files = files_signature([part.table.path for part in self._parts], self._folder)
        return files + (str(choices) if choices != usual else "")

    def _items_of(self, part: PlacedTable, first: int, batch: Any) -> Iterator[Item]:
        table, constants, kept = part
        images = batch.column(self._image)
        if self._label is None:
            labels: Sequence[Any] = [None] * batch.num_rows
        elif self._label in constants:
            labels = [_hive_value(constants[self._label])] * batch.num_rows
        else:
            labels = batch.column(self._label).to_pylist()
        for offset, label in enumerate(labels):
            if kept is not None and not kept[first + offset]:
                continue
            yield Item(
                f"{table.name} row {first + offset}",
                0 if self._label is None else self._number_of[label],
                lambda cell=images[offset]: content_of(cell, table.path.parent, self._folder),  # type: ignore[misc]
            )

    def _open(self, left_out: LeftOutFiles) -> list[PlacedTable]:
        arrow = isinstance(self._config, ArrowData)
        suffixes = ARROW_SUFFIXES if arrow else PARQUET_SUFFIXES
        files, others = files_of(self._root, suffixes)
        if not files:
            raise DataError(f"data.path {self._root} holds no files that end in {' or '.join(sorted(suffixes))}")
        inside = [file.relative_to(self._folder).parts for file in files]
        # A column may speak of splits where no name does.
        named = [split for path in inside if (split := split_of_file(path)) is not None]
        kept = files_of_split(inside, self._config.split if named else None, str(self._root))
        self._split = None if named else self._config.split
        if self._root.is_dir():
            self._about_files += check_parts([inside[i] for i in kept], str(self._root), self._config.missing_parts)
        else:
            self._about_files += about_one_part(self._root.name)
        for file in others:
            names = file.relative_to(self._folder).parts
            if not (arrow and file.suffix == ".json"):
                left_out.add(_why_left_out(file, names), "/".join(names))
        for index in sorted(set(range(len(files))) - set(kept)):
            left_out.add("of another split", "/".join(inside[index]))
        kind = ArrowTable if arrow else ParquetTable
        return [PlacedTable(kind(files[i], "/".join(inside[i])), _constants(inside[i])) for i in kept]

    def _rows_of_split(self) -> list[PlacedTable]:
        found = rows_of_split(self._parts, self._split, str(self._root), in_use=(self._image, self._label))
        if found is None and self._split is not None:
            raise DataError(
                f"{self._root} has no split {self._split}: neither the name of a file nor a column "
                f"({', '.join(COLUMNS)}) speaks of splits; leave --split away"
            )
        parts, remarks = found or (self._parts, [])
        self._about_files += remarks
        return parts

    def _columns(self) -> dict[str, Any]:
        """Types by name, of the first file that has rows, with what folders say."""
        part = next((part for part in self._parts if part.table.num_rows), self._parts[0])
        names = part.table.schema.names
        double = [name for name, count in Counter(names).items() if count > 1]
        if double:
            raise DataError(f"{part.table.path} has two columns called {double[0]}; rename one")
        return {name: part.table.column(name) for name in names} | dict.fromkeys(part.constants, pa.string())

    def _image_column(self) -> str:
        columns, wanted = self._columns(), self._config.image_column
        if wanted is not None:
            candidates = [wanted] if wanted in columns else []
        else:
            candidates = [name for name in IMAGE_NAMES[:1] if name in columns]
            candidates = candidates or [name for name, kind in columns.items() if is_image_struct(kind)]
            candidates = candidates or [name for name in IMAGE_NAMES if name in columns]
            candidates = candidates or [name for name in PATH_NAMES if name in columns]
        return self._only(candidates, "the images", wanted, "name it with --image-column (data.image_column)")

    def _label_column(self) -> str | None:
        columns, wanted = self._columns(), self._config.label_column
        if self._config.one_class or wanted == NO_LABELS:
            return None
        if wanted is not None:
            candidates = [wanted] if wanted in columns else []
        else:
            candidates = [name for name in LABEL_NAMES[:1] if name in columns]
            candidates = candidates or [name for name in columns if self._described_names(name) is not None]
            candidates = candidates or [name for name in LABEL_NAMES if name in columns]
        how = (
            "name it with --label-column (data.label_column), or read all images as one class with --label-column none"
        )
        return self._only(candidates, "the labels", wanted, how)

    def _only(self, candidates: Sequence[str], what: str, wanted: str | None, how: str) -> str:
        """The one column that can be meant. DataError with what to do if there is none, or several."""
        if len(candidates) != 1:
            missing = f"no column {wanted}" if wanted is not None else f"no column that is clearly {what}"
            raise DataError(
                f"{self._parts[0].table.path} has {missing}; {how}; there are: {', '.join(self._columns())}"
            )
        return candidates[0]

    def _check(self, part: PlacedTable) -> None:
        """DataError unless the file has both columns, of types that can be used."""
        table, constants = part.table, part.constants
        if table.num_rows == 0:
            return
        for name in (self._image, self._label):
            if name is not None and name not in constants and table.schema.get_field_index(name) < 0:
                raise DataError(
                    f"{table.path} has no column {name}, which other files have; its columns are "
                    f"{', '.join(table.schema.names)}; take it away, or give the path of the files that belong together"
                )
        if self._image in constants or not holds_pictures(table.column(self._image)):
            kind = table.column(self._image) if self._image not in constants else "text"
            raise DataError(f"{table.path}: the column {self._image} holds {kind}, not pictures; name another with "
                            "--image-column (data.image_column)")  # fmt: skip
        self._check_no_addresses(table)
        if self._label is not None and self._label not in constants and not _can_label(table.column(self._label)):
            raise DataError(
                f"{table.path}: the column {self._label} holds {table.column(self._label)}, not one number or word per "
                "row; name another with --label-column (data.label_column), or none: --label-column none"
            )

    def _check_no_addresses(self, table: TableFile) -> None:
        if not pa.types.is_string(table.column(self._image)):
            return
        _, batch = next(table.rows([self._image]))
        first = next((text for text in batch.column(0).to_pylist() if text), "")
        if first.startswith(ADDRESSES):
            raise DataError(
                f"{table.path}: the column {self._image} holds addresses ({first[:60]}), not pictures; download them, "
                "or name another column with --image-column (data.image_column)"
            )

    def _read_classes(self) -> Classes:
        if self._label is None:
            return Classes((ONE_CLASS,), {})
        values: set[Any] = set()
        for part in self._parts:
            values |= self._values_of(part, self._label)
        names = self._described_names(self._label)
        if values and {type(value) for value in values} == {str} and names is not None:
            names = None
        return numbered(values, names=names, sparse=self._config.sparse_labels, locate=self._locate)

    def _values_of(self, part: PlacedTable, label: str) -> set[Any]:
        """The distinct labels of a file. DataError if a row has none."""
        path, constants = part.table.path, part.constants
        if label in constants:
            if constants[label] == HIVE_MISSING:
                raise DataError(f"{path}: the label is missing in the name of its folder; take the folder away")
            self._check_folder(part, label)
            return {_hive_value(constants[label])} if part.num_rows else set()
        values: set[Any] = set()
        for rows, column in part.values(label):
            distinct = set(pc.unique(column).to_pylist())
            if any(map(_is_missing, distinct)):
                row = next(row for row, value in zip(rows, column.to_pylist(), strict=True) if _is_missing(value))
                raise DataError(
                    f"{path} row {row}: the label is missing in the column {label}; fill it in, leave "
                    "such rows out, or read all images as one class with --label-column none"
                )
            values |= distinct
        return values

    def _check_folder(self, part: PlacedTable, label: str) -> None:
        """DataError if a column of the same name says something else than the folder does."""
        if part.table.schema.get_field_index(label) < 0:
            return
        said = part.constants[label]
        names = self._described_names(label)
        for rows, column in part.values(label):
            for row, value in zip(rows, column.to_pylist(), strict=True):
                named = names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
                if value != _hive_value(said) and str(named) != unquote(said):
                    raise DataError(
                        f"{part.table.path} row {row}: the column {label} says {value}, the folder {label}={said}; "
                        "rename one of them, or name another column with --label-column (data.label_column)"
                    )

    def _locate(self, label: Any) -> str:
        """File and row of the first such label."""
        for part in self._parts:
            if self._label is None or self._label in part.constants:
                if self._label and _hive_value(part.constants[self._label]) == label:
                    return str(part.table.path)
                continue
            for rows, column in part.values(self._label):
                values = column.to_pylist()
                if label in values:
                    return f"{part.table.path} row {rows[values.index(label)]}, column {self._label}"
        return str(self._root)

    def _described_names(self, column: str) -> tuple[str, ...] | None:
        """What Hugging Face's description of the columns calls the classes. DataError if files disagree."""
        known: dict[tuple[str, ...], Path] = {}
        for table in (part.table for part in self._parts):
            names = _class_names(_features(table), column)
            if names is not None:
                known.setdefault(names, table.path)
        if len(known) > 1:
            first, second, *_ = known.values()
            raise DataError(f"{first} and {second} name the classes differently; give the path of one of them")
        return next(iter(known), None)


def _features(table: TableFile) -> Any:
    """Hugging Face's description of the columns, of whatever form it is."""
    beside = table.path.with_name("dataset_info.json")
    try:
        described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"null"))
        if described is not None:
            return described["info"]["features"]
        return json.loads(beside.read_text())["features"] if isinstance(table, ArrowTable) else None
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _class_names(features: Any, column: str) -> tuple[str, ...] | None:
    described = features.get(column) if isinstance(features, dict) else None
    names = described.get("names") if isinstance(described, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _why_left_out(file: Path, names: Sequence[str]) -> str:
    if is_hidden(names):
        return "hidden"
    if file.suffix.lower() in SUFFIXES:
        return "a picture beside tables, read only where a row names it"
    return f"no table ({file.suffix or 'no suffix'})"


def _can_label(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string,
             pa.types.is_large_string, pa.types.is_string_view)  # fmt: skip
    return any(test(kind) for test in tests)


def _constants(names: Sequence[str]) -> dict[str, str]:
    """What partitioned folders say of all rows below, as label=cat."""
    pairs = (name.partition("=") for name in names[:-1])
    return {key: value for key, equals, value in pairs if equals}


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


def _hive_value(text: str) -> int | str:
    return int(text) if text.isdecimal() else unquote(text)

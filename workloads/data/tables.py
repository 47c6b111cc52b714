"""Images in tables: Parquet files, and Arrow files as Hugging Face's save_to_disk writes them."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from workloads.config.data import ArrowData, ParquetData
from workloads.data.cells import ADDRESSES, content_of, holds_pictures, is_image_struct
from workloads.data.found import LeftOutFiles
from workloads.data.labels import ONE_CLASS, Classes, numbered
from workloads.data.source import ImageSource, Item, existing
from workloads.data.splits import files_of_split
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

NO_LABELS = "none"
HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels", "png", "jpg", "jpeg", "webp")
LABEL_NAMES = ("label", "labels", "class", "target", "category")
"""Names of columns that are taken where one of them is there and none is named."""


class _PlacedTable(NamedTuple):
    """A file, and what the names of its folders say of all of its rows, as label=cat."""

    table: TableFile
    constants: dict[str, str]


class TableSource(ImageSource):
    """A column of pictures and, unless there is to be one class, a column of labels."""

    def __init__(self, config: ParquetData | ArrowData) -> None:
        self._config = config
        self._root = existing(config.path)
        self._folder = self._root if self._root.is_dir() else self._root.parent
        left_out = LeftOutFiles()
        self._parts = self._open(left_out)
        self._image = self._image_column()
        self._label = self._label_column()
        for part in self._parts:
            self._check(part)
        self.num_images = sum(part.table.num_rows for part in self._parts)
        if self.num_images == 0:
            raise DataError(f"{self._root} has no rows, so no images; nothing can be prepared from it")
        classes = self._read_classes()
        self.class_names, self._number_of = classes.names, classes.number_of
        self.left_out = left_out.summary()
        self.remarks = (f"images from the column {self._image}, labels from {self._label or 'nowhere: one class'}",)

    def items(self, start: int) -> Iterator[Item]:
        position = 0
        for table, constants in self._parts:
            first = max(0, start - position)
            position += table.num_rows
            if first >= table.num_rows:
                continue
            columns = [name for name in (self._image, self._label) if name and name not in constants]
            for row, batch in table.rows(columns, first):
                yield from self._items_of(table, constants, row, batch)

    def signature(self) -> str:
        config = self._config
        choices = [config.split, config.image_column, config.label_column, config.one_class, config.sparse_labels]
        usual = [None, None, None, False, "refuse"]
        files = files_signature([part.table.path for part in self._parts], self._folder)
        return files + (str(choices) if choices != usual else "")

    def _items_of(self, table: TableFile, constants: dict[str, str], first: int, batch: Any) -> Iterator[Item]:
        images = batch.column(self._image)
        if self._label is None:
            labels: Sequence[Any] = [None] * batch.num_rows
        elif self._label in constants:
            labels = [_hive_value(constants[self._label])] * batch.num_rows
        else:
            labels = batch.column(self._label).to_pylist()
        for offset, label in enumerate(labels):
            yield Item(
                f"{table.name} row {first + offset}",
                0 if self._label is None else self._number_of[label],
                lambda cell=images[offset]: content_of(cell, table.path.parent, self._folder),  # type: ignore[misc]
            )

    def _open(self, left_out: LeftOutFiles) -> list[_PlacedTable]:
        arrow = isinstance(self._config, ArrowData)
        suffixes = ARROW_SUFFIXES if arrow else PARQUET_SUFFIXES
        files, others = files_of(self._root, suffixes)
        if not files:
            raise DataError(f"data.path {self._root} holds no files that end in {' or '.join(sorted(suffixes))}")
        inside = [file.relative_to(self._folder).parts for file in files]
        kept = files_of_split(inside, self._config.split, str(self._root))
        for file in others:
            names = file.relative_to(self._folder).parts
            if not (arrow and file.suffix == ".json"):
                left_out.add(
                    "hidden" if is_hidden(names) else f"no table ({file.suffix or 'no suffix'})", "/".join(names)
                )
        for index in sorted(set(range(len(files))) - set(kept)):
            left_out.add("of another split", "/".join(inside[index]))
        kind = ArrowTable if arrow else ParquetTable
        return [_PlacedTable(kind(files[i], "/".join(inside[i])), _constants(inside[i])) for i in kept]

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

    def _check(self, part: _PlacedTable) -> None:
        """DataError unless the file has both columns, of types that can be used."""
        table, constants = part
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

    def _values_of(self, part: _PlacedTable, label: str) -> set[Any]:
        """The distinct labels of a file. DataError if a row has none."""
        table, constants = part
        if label in constants:
            if constants[label] == HIVE_MISSING:
                raise DataError(f"{table.path}: the label is missing in the name of its folder; take the folder away")
            return {_hive_value(constants[label])} if table.num_rows else set()
        values: set[Any] = set()
        for first, batch in table.rows([label]):
            column = _countable(batch.column(0))
            distinct = set(pc.unique(column).to_pylist())
            if any(map(_is_missing, distinct)):
                row = next(row for row, value in enumerate(column.to_pylist()) if _is_missing(value))
                raise DataError(
                    f"{table.path} row {first + row}: the label is missing in the column {label}; fill it in, leave "
                    "such rows out, or read all images as one class with --label-column none"
                )
            values |= distinct
        return values

    def _locate(self, label: Any) -> str:
        """File and row of the first such label."""
        for table, constants in self._parts:
            if self._label in constants:
                if _hive_value(constants[self._label]) == label:
                    return str(table.path)
                continue
            for first, batch in table.rows([self._label] if self._label else []):
                values = batch.column(0).to_pylist()
                if label in values:
                    return f"{table.path} row {first + values.index(label)}, column {self._label}"
        return str(self._root)

    def _described_names(self, column: str) -> tuple[str, ...] | None:
        """What Hugging Face's description of the columns calls the classes. DataError if files disagree."""
        known: dict[tuple[str, ...], Path] = {}
        for table, _ in self._parts:
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


def _can_label(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string,
             pa.types.is_large_string, pa.types.is_string_view)  # fmt: skip
    return any(test(kind) for test in tests)


def _constants(names: Sequence[str]) -> dict[str, str]:
    """What partitioned folders say of all rows below, as label=cat."""
    pairs = (name.partition("=") for name in names[:-1])
    return {key: value for key, equals, value in pairs if equals}


def _countable(column: Any) -> Any:
    """Arrow has no distinct values of half precision."""
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


def _hive_value(text: str) -> int | str:
    return int(text) if text.isdecimal() else unquote(text)

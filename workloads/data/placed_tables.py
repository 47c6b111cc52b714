"""Files of one data set: what folders say of their rows, and which rows are of the split that is read."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workloads.data.splits import COLUMNS, split_of_value, values_of_split
from workloads.data.table_files import TableFile


class PlacedTable(NamedTuple):
    """A file, and what the names of its folders say of all of its rows, as label=cat."""

    table: TableFile
    constants: dict[str, str]
    kept: np.ndarray | None = None
    """Which rows are read, as booleans; None: all."""

    @property
    def num_rows(self) -> int:
        """Rows that are read."""
        return self.table.num_rows if self.kept is None else int(self.kept.sum())

    def first_row(self, index: int) -> int:
        """Where the row lies that is read as number `index`."""
        return index if self.kept is None else int(np.flatnonzero(self.kept)[index])

    def values(self, column: str) -> Iterator[tuple[np.ndarray, Any]]:
        """What is read of a column, as Arrow arrays with the numbers of their rows."""
        for first, batch in self.table.rows([column]):
            rows, values = np.arange(first, first + batch.num_rows), _countable(batch.column(0))
            if self.kept is not None:
                kept = self.kept[rows]
                rows, values = rows[kept], values.filter(pa.array(kept))
            yield rows, values


def rows_of_split(
    parts: Sequence[PlacedTable], wanted: str | None, where: str, *, in_use: Collection[str | None]
) -> tuple[list[PlacedTable], list[str]] | None:
    """The files with only the rows of a split, where a column says what each is of, and a remark on that.

    None where no column does. in_use: columns that say something else. DataError if the wanted split is not there.
    """
    for column in _columns(parts):
        if column in in_use:
            continue
        counts = sum((_counts(part, column) for part in parts), Counter[str | None]())
        values = values_of_split(counts, wanted, f"{where}: the column {column}")
        if values is None:
            continue
        kept = [part._replace(kept=_mask(part, column, values)) for part in parts]
        rest = Counter[str]()
        for value, count in counts.items():
            if value not in values:
                rest[split_of_value(value) if value else "no split"] += count
        not_read = ", ".join(f"{count} of {name}" for name, count in sorted(rest.items()))
        remark = f"read the {counts.total() - rest.total()} rows whose {column} is {', '.join(sorted(values))}"
        return kept, [f"{remark}; not read: {not_read or 'none'}"]
    return None


def _columns(parts: Sequence[PlacedTable]) -> list[str]:
    """Columns that are called so and hold words, in the files that have rows."""
    filled = [part.table for part in parts if part.table.num_rows]
    names = {name for table in filled for name in table.schema.names if name.lower() in COLUMNS}
    return sorted(
        name
        for name in names
        if all(table.schema.get_field_index(name) >= 0 and _holds_words(table.column(name)) for table in filled)
    )


def _holds_words(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _counts(part: PlacedTable, column: str) -> Counter[str | None]:
    found = Counter[str | None]()
    for _, values in part.values(column):
        for one in pc.value_counts(_words(values)):
            found[one["values"].as_py()] += one["counts"].as_py()
    return found


def _mask(part: PlacedTable, column: str, wanted: set[str]) -> np.ndarray:
    values = pa.array(sorted(wanted), pa.string())
    masks = [pc.is_in(_words(read), values).to_numpy(zero_copy_only=False) for _, read in part.values(column)]
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def _words(column: Any) -> Any:
    return column.cast(pa.string())


def _countable(column: Any) -> Any:
    """Arrow has no distinct values of half precision."""
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column

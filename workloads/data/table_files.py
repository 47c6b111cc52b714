"""Files of tables, Parquet and Arrow, read a few rows at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data.pictures import require_file
from workloads.data.trees import ignored
from workloads.errors import DataError

PARQUET_SUFFIXES = frozenset({".parquet", ".parq", ".pq"})
ARROW_SUFFIXES = frozenset({".arrow", ".feather", ".ipc"})
BATCH_BYTES = 2**24
"""Of rows that are in memory at a time, about."""
MAX_BATCH_ROWS = 1024
BUFFER_BYTES = 2**20
"""Of a file that are read at a time; without, all of a row group would be."""


class TableFile(ABC):
    """One file with columns."""

    schema: Any
    num_rows: int

    def __init__(self, file: Path, name: str) -> None:
        self.path, self.name = file, name
        """name: what messages call it."""
        require_file(file, "a table")
        try:
            self._open()
        except (OSError, pa.ArrowException) as error:
            raise self.damaged(error) from None

    def column(self, name: str) -> Any:
        """The type of a column."""
        return self.schema.field(name).type

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[tuple[int, Any]]:
        """Record batches with the number of their first row, from a row on. DataError if the file is damaged."""
        try:
            yield from self._batches(columns, start)
        except (OSError, pa.ArrowException) as error:
            raise self.damaged(error) from None

    def damaged(self, error: Exception) -> DataError:
        """What to tell about a file that is not what its name says."""
        return DataError(
            f"{self.path} cannot be read ({str(error).splitlines()[0][:200]}); get it again or take it away"
        )

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]: ...


class ParquetTable(TableFile):
    """A Parquet file."""

    def _open(self) -> None:
        # Nothing ahead: a row group may be larger than memory.
        with pq.ParquetFile(self.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as opened:
            self.schema, self.num_rows = opened.schema_arrow, opened.metadata.num_rows
            groups = [opened.metadata.row_group(index) for index in range(opened.metadata.num_row_groups)]
        self._group_rows = [group.num_rows for group in groups]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, self.num_rows)
        self._batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))

    def _batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        first, group = 0, 0
        while group < len(self._group_rows) and first + self._group_rows[group] <= start:
            first, group = first + self._group_rows[group], group + 1
        with pq.ParquetFile(self.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as opened:
            groups = range(group, len(self._group_rows))
            for batch in opened.iter_batches(self._batch_rows, row_groups=groups, columns=list(columns)):
                if first + batch.num_rows > start:
                    skipped = max(0, start - first)
                    yield first + skipped, batch.slice(skipped)
                first += batch.num_rows


class ArrowTable(TableFile):
    """An Arrow file or stream, as Hugging Face's save_to_disk writes it; mapped into memory."""

    def _open(self) -> None:
        with self._reader() as reader:
            self.schema = reader.schema
            self.num_rows = sum(batch.num_rows for batch in self._all(reader))

    def _batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        first = 0
        with self._reader() as reader:
            for batch in self._all(reader):
                whole = batch.select(list(columns))
                rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * whole.num_rows // max(1, whole.nbytes)))
                for offset in range(max(0, start - first), whole.num_rows, rows):
                    yield first + offset, whole.slice(offset, rows)
                first += whole.num_rows

    def _reader(self) -> Any:
        source = pa.memory_map(str(self.path))
        try:
            return pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source)

    @staticmethod
    def _all(reader: Any) -> Iterator[Any]:
        if isinstance(reader, pa.ipc.RecordBatchStreamReader):
            yield from reader
        else:
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))


def files_of(root: Path, suffixes: frozenset[str]) -> tuple[list[Path], list[Path]]:
    """Files of such a table under a folder, in order; and those that are left out, with all hidden folders."""
    if not root.is_dir():
        return [root], []
    kept, left_out = [], []
    for file in sorted(root.rglob("*")):
        names = file.relative_to(root).parts
        if is_hidden(names):
            left_out.append(file)
        elif file.suffix.lower() in suffixes and not file.is_dir():
            kept.append(file)
        elif not file.is_dir():
            left_out.append(file)
    return kept, left_out


def has_file(root: Path, suffixes: frozenset[str]) -> bool:
    """Whether a folder holds a file that ends so, hidden ones aside."""
    if not root.is_dir():
        return False
    ends = (file for file in root.rglob("*") if file.suffix.lower() in suffixes)
    return any(not is_hidden(file.relative_to(root).parts) and not file.is_dir() for file in ends)


def is_hidden(names: Sequence[str]) -> bool:
    """Whether a path is nobody's data: hidden, or set aside by Spark and others with an underscore."""
    return any(ignored(name) or name.startswith("_") for name in names)

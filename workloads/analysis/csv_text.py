"""The numbers of a figure as text for other programs."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """What a figure shows."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]

    def to_csv(self) -> str:
        """A heading and a line per row, as RFC 4180 has them."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return file.getvalue()

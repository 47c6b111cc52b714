"""A picture of the page, whole in itself: PNG in a data URI."""

import base64
import io
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from workloads.analysis.csv_text import Table

FIGURE_DPI = 140
CSS_PX_PER_INCH = 112
"""Of a figure at its full width in the page."""

MAX_STORED_BYTES = 300_000
MAX_PX = 1_280
"""Of the longer side of a picture that is stored in more."""


class Picture(NamedTuple):
    """An image in the page."""

    source: str
    """Data URI."""

    width_px: int
    """At most this wide, in CSS pixels."""

    alt: str
    caption: str = ""
    tables: tuple[tuple[str, str], ...] = ()
    """What it shows: names of CSV files, and their content as data URIs."""


def picture_of(figure: Figure, alt: str, caption: str, **tables: Table) -> Picture:
    """A figure as it stands in the page, with its numbers by the names of their files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=FIGURE_DPI, format="png")
    width_px = round(figure.get_figwidth() * CSS_PX_PER_INCH)
    files = tuple((f"{name}.csv", csv_uri(table.to_csv())) for name, table in tables.items())
    return Picture(data_uri(buffer.getvalue()), width_px, alt, caption, files)


def csv_uri(text: str) -> str:
    """A CSV file's content as an address."""
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def stored_picture(content: bytes, alt: str, caption: str = "", *, width_px: int, max_px: int = MAX_PX) -> Picture:
    """A PNG file's content as it stands in the page; what is large is made smaller, for a page is to stay small."""
    if len(content) > MAX_STORED_BYTES:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
        image.thumbnail((max_px, max_px))
        buffer = io.BytesIO()
        image.save(buffer, format="jpeg", quality=85)
        source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return Picture(source, width_px, alt, caption)
    return Picture(data_uri(content), width_px, alt, caption)


def data_uri(content: bytes) -> str:
    """A PNG file's content as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

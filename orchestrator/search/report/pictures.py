"""A picture of the page, whole in itself: PNG in a data URI."""

import base64
import io
from typing import NamedTuple

from matplotlib.figure import Figure

FIGURE_DPI = 140
CSS_PX_PER_INCH = 112
"""Of a figure at its full width in the page."""


class Picture(NamedTuple):
    """An image in the page."""

    source: str
    """Data URI."""

    width_px: int
    """At most this wide, in CSS pixels."""

    alt: str
    caption: str = ""


def picture_of(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure as it stands in the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=FIGURE_DPI, format="png")
    return Picture(data_uri(buffer.getvalue()), round(figure.get_figwidth() * CSS_PX_PER_INCH), alt, caption)


def data_uri(content: bytes) -> str:
    """A PNG file's content as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

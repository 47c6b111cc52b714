"""Images side by side, for people."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_CELL_PX = 56
"""Small images are enlarged, each pixel to a square, until they are about this large."""

GAP_PX = 2
FONT_PX = 13
BACKGROUND = "#202020"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Axes: N images, C channels, H height, W width.


def sample_grid(
    images_NCHW: Any, *, num_columns: int, scale: int | None = None, labels: Sequence[str] | None = None
) -> Image.Image:
    """Row by row, grey or colour uint8, every pixel a square of `scale` (None: what makes small images visible).

    labels: one name per row, written in front of it. ValueError if their number is not that of the rows.
    """
    array_NCHW = np.asarray(images_NCHW)
    assert array_NCHW.dtype == np.uint8
    num_images, channels, height, width = array_NCHW.shape
    assert channels in {1, 3}
    scale = scale or max(1, round(MIN_CELL_PX / height))
    num_rows = -(-num_images // num_columns)
    font = ImageFont.load_default(FONT_PX)
    left = _label_width(labels, num_rows, font) if labels is not None else 0
    cell_height, cell_width = height * scale + GAP_PX, width * scale + GAP_PX
    grid = Image.new("RGB", (left + num_columns * cell_width + GAP_PX, num_rows * cell_height + GAP_PX), BACKGROUND)
    for index, image_CHW in enumerate(array_NCHW):
        pixels = image_CHW[0] if channels == 1 else image_CHW.transpose(1, 2, 0)
        cell = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        row, column = divmod(index, num_columns)
        grid.paste(cell, (left + GAP_PX + column * cell_width, GAP_PX + row * cell_height))
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(labels or ()):
        middle = GAP_PX + row * cell_height + cell_height // 2
        draw.text((left - FONT_PX // 2, middle), label, fill="white", anchor="rm", font=font)
    return grid


def _label_width(labels: Sequence[str], num_rows: int, font: Any) -> int:
    if len(labels) != num_rows:
        raise ValueError(f"{len(labels)} labels for {num_rows} rows of images; give one per row")
    widest: float = max(font.getlength(label) for label in labels)
    return FONT_PX + round(widest)


def is_whole_png(content: bytes) -> bool:
    """Whether a PNG file is as it was written: length, type, data and checksum of each chunk, up to the last, IEND.

    Pillow does not look at the last one.
    """
    place, kind = len(PNG_SIGNATURE), b""
    while content.startswith(PNG_SIGNATURE) and place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        kind = content[place + 4 : place + 8]
        if zlib.crc32(content[place + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            return False
        place = end
    return kind == b"IEND" and place == len(content)

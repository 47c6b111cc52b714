"""Pictures of unusual forms, what is no picture, and files that are damaged."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_families.cases import (
    SIDE,
    Case,
    Draw,
    encoded,
    packed,
    pictures,
    tree_files,
    truth_of,
    write_files,
    write_table,
    write_tar,
    write_zip,
)


def odd_pictures(draw: Draw, root: Path) -> Iterator[Case]:
    """Depths, turns, transparency and sizes, with the pixels that a person would see."""
    for number in range(3):
        made = [draw.one(PICTURES)(draw) for _ in range(6)]
        names = [f"{draw.one(('a', 'b'))}/{index}.{suffix}" for index, (_, suffix, _) in enumerate(made)]
        files = {name: content for name, (content, _, _) in zip(names, made, strict=True)}
        (root / str(number)).mkdir()
        truth = truth_of([name.partition("/")[0] for name in names], [seen for _, _, seen in made])
        yield Case(packed(draw, root / str(number), files), {}, truth)


def _turned(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    stored, turn = draw.pixels(), draw.number(0, 9)
    seen = {
        2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1),
    }.get(turn, lambda a: a)(stored)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    form = draw.one(("PNG", "TIFF", "WEBP"))
    return encoded(stored, form, exif=exif), form.lower(), np.ascontiguousarray(seen)


def _deep(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    values = draw.rng.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    form = draw.one(("PNG", "TIFF"))
    return encoded(values, form), form.lower(), _grey(np.rint(values / 257))


def _fractions(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    values = draw.rng.integers(0, 256, (SIDE, SIDE))
    return encoded((values / 255).astype(np.float32), "TIFF"), "tif", _grey(values)


def _transparent(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    pixels, shown = draw.pixels(), draw.rng.random((SIDE, SIDE)) < 0.5
    stored = np.dstack([pixels, np.where(shown, 255, 0).astype(np.uint8)])
    form = draw.one(("PNG", "WEBP"))
    options = {"exact": True} if form == "WEBP" else {}
    return encoded(stored, form, **options), form.lower(), np.where(shown[..., None], pixels, 255).astype(np.uint8)


def _plain_grey(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    values = draw.rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    form, suffix = draw.one((("PNG", "png"), ("PPM", "pgm"), ("BMP", "bmp"), ("GIF", "gif")))
    return encoded(values, form), suffix, _grey(values)


def _black_and_white(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    values = draw.rng.random((SIDE, SIDE)) < 0.5
    return encoded(values, draw.one(("PNG", "TIFF"))), "png", _grey(values * 255)


def _wide(draw: Draw) -> tuple[bytes, str, np.ndarray]:
    """The middle square is taken."""
    margin = draw.number(1, 5)
    stored = draw.rng.integers(0, 256, (SIDE, SIDE + 2 * margin, 3), dtype=np.uint8)
    seen = stored[:, margin:-margin]
    if draw.chance():
        stored, seen = stored.transpose(1, 0, 2), seen.transpose(1, 0, 2)
    return encoded(np.ascontiguousarray(stored)), "png", np.ascontiguousarray(seen)


PICTURES = (_turned, _deep, _fractions, _transparent, _plain_grey, _black_and_white, _wide)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def odd_entries(draw: Draw, root: Path) -> Iterator[Case]:
    """Pipes, dead links, empty files, pages and pointers among pictures: named, counted, never waited for."""
    files, truth = tree_files(draw, [""], inner=False)
    place = write_files(root / "set", files)
    beside = place / next(iter(files)).partition("/")[0]
    os.mkfifo(beside / "pipe")
    (beside / "up").symlink_to("..")
    (beside / "album.jpg").mkdir()
    makers: dict[str, Callable[[Path], Any]] = {
        "named pipe": os.mkfifo,
        "leads nowhere": lambda file: file.symlink_to("nowhere.png"),
        "cannot be opened|leads nowhere": lambda file: file.symlink_to(file.name),
        "not a file": lambda file: file.symlink_to("/dev/zero"),
        "an empty file": lambda file: file.write_bytes(b""),
        "a web page": lambda file: file.write_text("<!DOCTYPE html>"),
        "LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "not a picture": lambda file: file.write_bytes(draw.rng.bytes(draw.number(20, 200))),
        "cut short|damaged": lambda file: file.write_bytes(encoded(draw.pixels())[: draw.number(30, 90)]),
        "compressed": lambda file: file.write_bytes(b"\x1f\x8b\x08" + draw.rng.bytes(40)),
        "too large": lambda file: file.write_bytes(bomb()),
    }
    chosen = draw.some(sorted(makers))
    for number, reason in enumerate(chosen):
        makers[reason](beside / f"zz{number}.png")
    yield Case(place, {}, truth[""], tuple(chosen), num_bad=len(chosen))


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 40) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks + bytes(44)


def damaged(draw: Draw, root: Path) -> Iterator[Case]:
    """Files cut short, overwritten or nothing at all: what is read of them is what was written, or they are refused."""
    for number in range(6):
        pixels = pictures(draw, 4)
        file = whole_file(root / f"{number}{draw.one(('.parquet', '.arrow', '.tar', '.zip'))}", pixels)
        content = bytearray(file.read_bytes())
        way = draw.one(("cut", "other", "random", "flipped"))
        if way == "cut":
            content = content[: draw.number(0, len(content) - 1)]
        elif way == "other":
            content = draw.one((b"<html></html>", b"version https://git-lfs", b"PK\5\6", b"PAR1", b"ARROW1\0\0", b"\0"))
        elif way == "random":
            content = content[:4] + draw.rng.bytes(draw.number(1, 2000))
        elif file.suffix == ".zip":  # the others have no checksum of names and labels
            content[draw.number(0, len(content) - 1)] ^= 1 << draw.number(0, 7)
        file.write_bytes(content)
        yield Case(file, {}, truth_of([0, 1, 0, 1], pixels), may_be_refused=True)


def whole_file(file: Path, pixels: Sequence[np.ndarray]) -> Path:
    """Pictures of the classes 0 and 1 by turns."""
    labels = [number % 2 for number in range(len(pixels))]
    if file.suffix in {".parquet", ".arrow"}:
        return write_table(file, pa.table({"image": [encoded(one) for one in pixels], "label": labels}))
    files = {f"{label}/{i}.png": encoded(one) for i, (label, one) in enumerate(zip(labels, pixels, strict=True))}
    return write_zip(file, files) if file.suffix == ".zip" else write_tar(file, list(files.items()))

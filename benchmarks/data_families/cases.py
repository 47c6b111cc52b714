"""What a case is, and how the files of one are drawn and written."""

import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 6
CLASS_NAMES = ("cat", "dog", "Zebra", "été", "a b", "n01440764", "0", "日本", "x.y", "-1", "train car", " end ")
NOISE = (".DS_Store", "._a.png", "Thumbs.db", "notes.txt", ".hidden/b.png", "__MACOSX/._c.png", "@eaDir/d.jpg")
SPELLINGS = {
    "train": ("train", "Train", "training", "train2017", "train_images"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "TEST", "testing", "test_set"),
}
Truth = Counter[tuple[str, bytes]]
"""Class and pixels of each picture."""

Files = dict[str, bytes]
"""Contents by path."""


class Case(NamedTuple):
    """Something on disk, and what must become of it."""

    path: Path
    options: dict[str, Any]
    """As given on the command line."""

    truth: Truth | None
    """What is to be read; None: refused in one sentence."""

    told: str | tuple[str, ...] = ()
    """Patterns of what must be said: in the refusal, or in what was found."""

    num_bad: int = 0
    may_be_refused: bool = False
    """Whether a refusal is right as well: no reader could know."""


class Draw:
    """Random choices, the same for the same seed."""

    def __init__(self, seed: Sequence[int]) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def some(self, choices: Any, least: int = 1) -> list[Any]:
        count = self.number(least, len(choices))
        return [choices[index] for index in self.rng.permutation(len(choices))[:count]]

    def number(self, low: int, high: int) -> int:
        """One of low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def pixels(self) -> np.ndarray:
        return self.rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}), **options)
    return buffer.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def write_zip(file: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def write_tar(file: Path, files: Sequence[tuple[str, bytes]], mode: Any = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def write_table(file: Path, table: pa.Table, rows: int = 3) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix != ".arrow":
        pq.write_table(table, file, row_group_size=rows)
        return file
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return file


def pictures(draw: Draw, count: int) -> list[np.ndarray]:
    return [draw.pixels() for _ in range(count)]


def truth_of(names: Sequence[object], pixels: Sequence[np.ndarray]) -> Truth:
    return Counter((str(name), one.tobytes()) for name, one in zip(names, pixels, strict=True))


def tree_files(draw: Draw, splits: Sequence[str], *, inner: bool) -> tuple[Files, dict[str, Truth]]:
    """Files by path, and what of them is to be read of each split ("" where there are none)."""
    files: Files = {}
    truth: dict[str, Truth] = {split: Counter() for split in splits}
    names = draw.some(CLASS_NAMES, 2)
    for split in splits:
        spelt = draw.one(SPELLINGS[split]) if split else ""
        for name in names:
            for number in range(draw.number(1, 3)):
                pixels, form = draw.pixels(), draw.one(("PNG", "WEBP", "BMP", "TIFF"))
                below = draw.one(("", "2024/")) if not inner else ""
                parts = (name, spelt) if inner else (spelt, name)
                stem = "/".join(part for part in parts if part) + f"/{below}{number}"
                # Without a suffix, where the first bytes tell enough.
                bare = draw.chance(0.1) and form in {"PNG", "WEBP"}
                suffix = draw.one((form.lower(), form, "jpg", "JPEG", "jfif"))
                files[f"{stem}-bare" if bare else f"{stem}.{suffix}"] = encoded(pixels, form)
                truth[split][name, pixels.tobytes()] += 1
    for path in draw.some(NOISE, 0):
        files[f"{draw.one(sorted(files)).rpartition('/')[0]}/{path}"] = b"\0\1\2not of interest"
    return files, truth


def packed(draw: Draw, root: Path, files: Files) -> Path:
    """As a folder, a zip or a tar, the latter two whatever they are called."""
    way = draw.one(("folder", "zip", "tar"))
    if way == "folder":
        return write_files(root / "set", files)
    file = root / draw.one((f"set.{way}", "set"))
    return write_zip(file, files) if way == "zip" else write_tar(file, list(files.items()))

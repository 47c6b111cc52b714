"""What people bring, drawn at random: every picture comes out with its pixels and the name of its class, and no other.

More cases than here: REMEME_DATA_CASES=5000 python -m pytest tests/numerics/test_data_sources.py
"""

import contextlib
import io
import json
import os
import socket
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workloads.config.base import StrictConfig
from workloads.config.data import AnyData
from workloads.config.load import validate
from workloads.data.pictures import BadPictureError, read_picture
from workloads.data.source import ImageSource
from workloads.data.sources import detect_source, open_source
from workloads.errors import DataError

NUM_CASES = int(os.environ.get("REMEME_DATA_CASES", "300"))
"""Of all families together."""

SIDE = 6
CLASS_NAMES = ("cat", "dog", "Zebra", "été", "a b", "n01440764", "0", "日本", "x.y", "-1", "train car")
NOISE = (".DS_Store", "._a.png", "Thumbs.db", "notes.txt", ".hidden/b.png", "__MACOSX/._c.png", "@eaDir/d.jpg")
SPELLINGS = {
    "train": ("train", "Train", "training", "train2017", "train_images"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "TEST", "testing", "test_set"),
}
Truth = Counter[tuple[str, bytes]]
"""Class and pixels of each picture."""


class DataSection(StrictConfig):
    data: AnyData


class Draw:
    """One random case, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def some(self, choices: Any, least: int = 1) -> list[Any]:
        count = int(self.rng.integers(least, len(choices) + 1))
        return [choices[index] for index in self.rng.permutation(len(choices))[:count]]

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def pixels(self) -> np.ndarray:
        return self.rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def section(path: Path, **fields: Any) -> AnyData:
    return validate(DataSection, {"data": detect_source(str(path)) | {"image_size": SIDE} | fields}).data


def opened(path: Path, **fields: Any) -> ImageSource:
    return open_source(section(path, **fields))


def read_all(source: ImageSource, start: int = 0) -> Truth:
    found: Truth = Counter()
    for item in source.items(start):
        pixels = read_picture(item.read(), SIDE, 3).pixels_CHW.transpose(1, 2, 0)
        found[source.class_names[item.label], pixels.tobytes()] += 1
    return found


def check_order(source: ImageSource) -> None:
    """Going on in the middle, as after an interruption, gives the same as going through."""
    middle = source.num_images // 2
    whole = [(item.name, item.label) for item in source.items(0)]
    assert len(whole) == source.num_images
    assert [(item.name, item.label) for item in source.items(middle)] == whole[middle:]


def tree_files(draw: Draw, names: list[str]) -> tuple[dict[str, bytes], dict[str, Truth]]:
    """Files by path, and what of them is to be read of each split ("" where there are none)."""
    splits = draw.some(list(SPELLINGS), 2) if draw.chance() else [""]
    inner = draw.chance(0.3)
    files: dict[str, bytes] = {}
    truth: dict[str, Truth] = {split: Counter() for split in splits}
    spelt = {split: draw.one(SPELLINGS[split]) if split else "" for split in splits}
    for split in splits:
        for name in names:
            for number in range(int(draw.rng.integers(1, 4))):
                pixels, form = draw.pixels(), draw.one(("PNG", "WEBP", "BMP", "TIFF"))
                suffix = draw.one((form.lower(), form, "jpg", "JPEG", "jfif"))
                below = draw.one(("", "2024/")) if not inner else ""
                parts = (name, spelt[split]) if inner else (spelt[split], name)
                path = "/".join(part for part in parts if part) + f"/{below}{number}.{suffix}"
                if draw.chance(0.1) and form in {"PNG", "WEBP"}:
                    path = path.rpartition(".")[0] + "-bare"  # no suffix at all
                files[path] = encoded(pixels, form)
                truth[split][name, pixels.tobytes()] += 1
    for path in draw.some(NOISE, 0):
        files[f"{draw.one(sorted(files)).rpartition('/')[0]}/{path}"] = b"\0\1\2not of interest"
    return files, truth


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def write_zip(file: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(file: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check_splits(root: Path, truth: dict[str, Truth], **fields: Any) -> None:
    """Each split alone when asked for; without asking, the training split or a refusal that names the others."""
    if set(truth) == {""}:
        source = opened(root, **fields)
        assert read_all(source) == truth[""]
        check_order(source)
        return
    for split, wanted in truth.items():
        source = opened(root, split=split, **fields)
        assert read_all(source) == wanted
        check_order(source)
    if "train" in truth:
        assert read_all(opened(root, **fields)) == truth["train"]
    else:
        with pytest.raises(DataError, match=rf"--split .*{sorted(truth)[0]}"):
            opened(root, **fields)


@pytest.mark.parametrize("seed", range(NUM_CASES * 3 // 10))
def test_folders(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    files, truth = tree_files(draw, draw.some(CLASS_NAMES, 2))
    write_files(tmp_path / "set", files)
    check_splits(tmp_path / "set", truth)
    split = next(iter(truth))
    source = opened(tmp_path / "set", one_class=True, **({"split": split} if split else {}))
    assert source.class_names == ("all",)
    assert read_all(source).total() == truth[split].total()


@pytest.mark.parametrize("seed", range(NUM_CASES // 10))
def test_folders_in_archives(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    files, truth = tree_files(draw, draw.some(CLASS_NAMES, 2))
    file = tmp_path / draw.one(("set.zip", "set.tar", "set"))
    (write_tar if draw.chance() and file.suffix != ".zip" else write_zip)(file, files)
    check_splits(file, truth)


@pytest.mark.parametrize("seed", range(NUM_CASES // 10))
def test_webdataset_and_edm(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    labels = [int(label) for label in draw.rng.integers(0, 5, 6)]
    pixels = [draw.pixels() for _ in labels]
    truth: Truth = Counter((str(label), image.tobytes()) for label, image in zip(labels, pixels, strict=True))
    if draw.chance():
        files = {f"{i // 3:05d}/img{i:08d}.png": encoded(image) for i, image in enumerate(pixels)}
        listed = list(map(list, zip(files, labels, strict=True)))
        files["dataset.json"] = json.dumps({"labels": listed}).encode()
        write_zip(tmp_path / "edm.zip", files)
        write_files(tmp_path / "edm", files)
        for path in (tmp_path / "edm.zip", tmp_path / "edm"):
            assert read_all(opened(path)) == truth
        write_zip(tmp_path / "none.zip", files | {"dataset.json": b'{"labels": null}'})
        assert opened(tmp_path / "none.zip").class_names == ("all",)
        return
    by_field = draw.chance()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for index in range(shard * 3, shard * 3 + 3):
            members[f"{index:04d}.{draw.one(('png', 'PNG'))}"] = encoded(pixels[index])
            described = {"y": labels[index], "width": SIDE}
            members[f"{index:04d}.json"] = json.dumps(described).encode()
            members |= {} if by_field else {f"{index:04d}.cls": b"%d\n" % labels[index]}
        write_tar(tmp_path / f"set-train-{shard:06d}.tar", members)
    write_tar(tmp_path / "set-test-000000.tar", {"9.png": encoded(draw.pixels()), "9.cls": b"0", "9.json": b'{"y": 0}'})
    fields = {"label_column": "y"} if by_field else {}
    assert read_all(opened(tmp_path, **fields)) == truth
    assert opened(tmp_path, split="test", **fields).num_images == 1
    if by_field:
        with pytest.raises(DataError, match=r"y, width.*--label-column"):
            opened(tmp_path)


def images_column(draw: Draw, pixels: list[np.ndarray], folder: Path) -> pa.Array:
    """The same pictures in one of the ways that tables hold them."""
    files = [encoded(image) for image in pixels]
    way = draw.one(("struct", "bytes", "large", "view", "uint8", "nested", "first", "fractions", "paths", "dictionary"))
    if way == "struct":
        return pa.array([{"bytes": content, "path": draw.one((None, "a.png"))} for content in files])
    if way == "uint8":
        return pa.array([list(content) for content in files], pa.list_(pa.uint8()))
    if way == "nested":
        kind = draw.one((pa.uint8(), pa.int32(), pa.int64()))
        return pa.array([image.tolist() for image in pixels], pa.list_(pa.list_(pa.list_(kind))))
    if way == "first":
        return pa.array([image.transpose(2, 0, 1).tolist() for image in pixels])
    if way == "fractions":
        return pa.array([(image / 255).tolist() for image in pixels], pa.list_(pa.list_(pa.list_(pa.float32()))))
    if way == "paths":
        names = [f"pictures/{hash(content)}.png" for content in files]
        write_files(folder, dict(zip(names, files, strict=True)))
        return pa.array(names) if draw.chance() else pa.array([{"bytes": None, "path": name} for name in names])
    if way == "dictionary":
        return pa.array(files).dictionary_encode()
    return pa.array(files, {"bytes": pa.binary(), "large": pa.large_binary(), "view": pa.binary_view()}[way])


def labels_column(draw: Draw, way: str, values: list[int]) -> tuple[pa.Array, list[str]]:
    """Labels 0..4 in one of the ways that tables hold them, and the names of their classes."""
    words = [("ape", "bee", "cow", "doe", "eel")[value] for value in values]
    if way == "words":
        return pa.array(words, draw.one((pa.string(), pa.large_string()))), words
    if way == "dictionary":
        return pa.array(words).dictionary_encode(), words
    if way == "booleans":
        return pa.array([value > 2 for value in values]), [str(value > 2).lower() for value in values]
    kind = draw.one((pa.int8(), pa.uint8(), pa.int64(), pa.uint64(), pa.float64()))
    return pa.array(values, kind), [str(value) for value in values]


@pytest.mark.parametrize("seed", range(NUM_CASES * 4 // 10))
def test_tables(seed: int, tmp_path: Path) -> None:
    draw, truth = Draw(seed), Counter[tuple[str, bytes]]()
    way = draw.one(("numbers", "words", "dictionary", "booleans"))
    image, label = draw.one((("image", "label"), ("img", "labels"), ("Bild", "Klasse"), ("image", "fine_label")))
    named = {"image_column": image, "label_column": label} if image == "Bild" or label == "fine_label" else {}
    arrow = draw.chance(0.3)
    num_parts = int(draw.rng.integers(1, 4))
    for part in range(num_parts):
        count = int(draw.rng.integers(0, 5)) if part else 4
        pixels, values = [draw.pixels() for _ in range(count)], draw.rng.integers(0, 5, count).tolist()
        if not part:
            values = [4, 0, 1, 3]  # all but one class, the last among them
        labels, names = labels_column(draw, way, values)
        truth.update((name, one.tobytes()) for name, one in zip(names, pixels, strict=True))
        columns = {"id": pa.array(range(count)), image: images_column(draw, pixels, tmp_path), label: labels}
        table = pa.table(columns if count else {"id": pa.array([], pa.int64())})
        write_table(
            tmp_path, f"train-{part:05d}-of-{num_parts:05d}", table, arrow=arrow, rows=int(draw.rng.integers(1, 4))
        )
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "half.parquet").write_bytes(b"PAR1")
    source = opened(tmp_path, **named)
    assert read_all(source) == truth
    check_order(source)
    assert opened(tmp_path, **named | {"one_class": True}).class_names == ("all",)
    if named:
        with pytest.raises(DataError, match=r"--(image|label)-column"):
            opened(tmp_path)


def write_table(folder: Path, name: str, table: pa.Table, *, arrow: bool, rows: int) -> None:
    if not arrow:
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=rows)
        return
    with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.mark.parametrize("seed", range(NUM_CASES // 10))
def test_odd_entries_are_named_and_never_waited_for(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    files, truth = tree_files(draw, ["cat", "dog"])
    root = tmp_path / "set"
    write_files(root, files)
    place = root / next(name for name in files if "." in name).rpartition("/")[0]
    os.mkfifo(place / "pipe.png")
    (place / "gone.png").symlink_to("nowhere.png")
    (place / "self.png").symlink_to("self.png")
    (place / "null.png").symlink_to("/dev/zero")
    (place / "up").symlink_to("..")
    (place / "album.jpg").mkdir()
    (place / "empty.jpg").write_bytes(b"")
    (place / "page.JPG").write_text("<html>")
    os.mkfifo(place / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(place):  # the names of sockets must be short
        listener.bind("s.png")
    listener.close()
    own = next((split for split in truth if split and any(part in SPELLINGS[split] for part in place.parts)), "")
    source = opened(root, **({"split": own} if own else {}))
    found, bad = Counter[tuple[str, bytes]](), []
    for item in source.items(0):
        try:
            pixels = read_picture(item.read(), SIDE, 3).pixels_CHW.transpose(1, 2, 0)
            found[source.class_names[item.label], pixels.tobytes()] += 1
        except BadPictureError:
            bad.append(Path(item.name).name)
    assert found == truth[own]
    assert sorted(bad) == ["empty.jpg", "gone.png", "null.png", "page.JPG", "pipe.png", "s.png", "self.png"]
    assert {"not a file (a named pipe)", "a link to a folder above"} <= {one.reason for one in source.left_out}

"""Tables in files of several forms, their columns, splits and parts."""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_families.cases import (
    SPELLINGS,
    Case,
    Draw,
    Truth,
    encoded,
    pictures,
    truth_of,
    write_files,
    write_table,
    write_tar,
)


def images_column(draw: Draw, pixels: Sequence[np.ndarray], folder: Path) -> pa.Array:
    """The same pictures in one of the ways that tables hold them."""
    files = [encoded(image) for image in pixels]
    nested = pa.list_(pa.list_(pa.list_(draw.one((pa.uint8(), pa.int32(), pa.int64())))))
    ways: dict[str, Callable[[], pa.Array]] = {
        "struct": lambda: pa.array([{"bytes": content, "path": draw.one((None, "a.png"))} for content in files]),
        "bytes": lambda: pa.array(files, pa.binary()),
        "large": lambda: pa.array(files, pa.large_binary()),
        "view": lambda: pa.array(files, pa.binary_view()),
        "uint8": lambda: pa.array([list(content) for content in files], pa.list_(pa.uint8())),
        "nested": lambda: pa.array([image.tolist() for image in pixels], nested),
        "first": lambda: pa.array([image.transpose(2, 0, 1).tolist() for image in pixels]),
        "fractions": lambda: pa.array([(image / 255).tolist() for image in pixels]),
        "base64": lambda: pa.array([_letters(draw, content) for content in files]),
        "paths": lambda: _paths(draw, files, folder),
        "dictionary": lambda: pa.array(files).dictionary_encode(),
    }
    return ways[draw.one(sorted(ways))]()


def _letters(draw: Draw, content: bytes) -> str:
    return draw.one(("", "data:image/png;base64,")) + base64.b64encode(content).decode()


def _paths(draw: Draw, files: Sequence[bytes], folder: Path) -> pa.Array:
    first = len(list(folder.rglob("*")))
    names = [f"pictures/{first + number}.png" for number in range(len(files))]
    write_files(folder, dict(zip(names, files, strict=True)))
    return pa.array(names) if draw.chance() else pa.array([{"bytes": None, "path": name} for name in names])


def labels_column(draw: Draw, way: str, values: Sequence[int]) -> tuple[pa.Array, list[str]]:
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


def tables(draw: Draw, root: Path) -> Iterator[Case]:
    """Parquet and Arrow in several files of several types, with columns of known and unknown names."""
    truth: Truth = Counter()
    way = draw.one(("numbers", "words", "dictionary", "booleans"))
    image, label = draw.one((("image", "label"), ("img", "labels"), ("Bild", "Klasse"), ("image", "fine_label")))
    named = {"image_column": image, "label_column": label} if image == "Bild" or label == "fine_label" else {}
    suffix = draw.one((".parquet", ".parquet", ".arrow"))
    num_parts = draw.number(1, 3)
    for part in range(num_parts):
        # All but one class in the first, the last among them.
        values = [draw.number(0, 4) for _ in range(draw.number(0, 4))] if part else [4, 0, 1, 3]
        pixels = pictures(draw, len(values))
        labels, names = labels_column(draw, way, values)
        truth += truth_of(names, pixels)
        columns = {"id": pa.array(range(len(values))), image: images_column(draw, pixels, root), label: labels}
        table = pa.table(columns if values else {"id": pa.array([], pa.int64())})
        write_table(root / f"train-{part:05d}-of-{num_parts:05d}{suffix}", table, draw.number(1, 3))
    write_files(root, {".cache/half.parquet": b"PAR1"})
    yield Case(root, named, truth)
    yield Case(root, named | {"label_column": "none"}, Counter(("all", pixels) for _, pixels in truth.elements()))
    if named:
        yield Case(root, {}, None, "--(image|label)-column")


def row_splits(draw: Draw, root: Path) -> Iterator[Case]:
    """A column that says what split each row is of."""
    count = draw.number(6, 12)
    splits = ["train", "test", *(draw.one(("train", "val", "test")) for _ in range(count - 2))]
    labels = [0, 0, *(draw.number(0, 1) for _ in splits[2:])]
    pixels = pictures(draw, count)
    column = draw.one(("split", "Split", "subset"))
    spelt = [draw.one(SPELLINGS[split][:3:2]) for split in splits]
    values: pa.Array = pa.array(spelt)
    table = pa.table(
        {
            "image": images_column(draw, pixels, root),
            # Labels of what is not read do not matter.
            "label": [label if split == "train" else None for label, split in zip(labels, splits, strict=True)],
            column: values.dictionary_encode() if draw.chance(0.3) else values,
        }
    )
    path = write_table(root / draw.one(("all.parquet", "0.arrow")), table, draw.number(1, 5))
    kept = [index for index, split in enumerate(splits) if split == "train"]
    train = truth_of([labels[index] for index in kept], [pixels[index] for index in kept])
    yield Case(path, {}, train, f"whose {column} is")
    yield Case(path, {"split": "train"}, train, f"whose {column} is")
    yield Case(path, {"split": "test"}, None, "the label is missing")
    tested = [one for one, split in zip(pixels, splits, strict=True) if split == "test"]
    yield Case(path, {"split": "test", "label_column": "none"}, truth_of(["all"] * len(tested), tested))
    yield Case(path, {"split": "other"}, None, "has no split other")
    # The same column may be what is wanted as label.
    yield Case(path, {"label_column": column}, truth_of(spelt, pixels))


def hive_folders(draw: Draw, root: Path) -> Iterator[Case]:
    """Folders that tell the label of all rows below; files that say the same, or something else."""
    names = draw.some(("cat", "dog", "a b"), 2) + (["7"] if draw.chance(0.2) else [])
    truth: Truth = Counter()
    repeat = draw.chance()
    for name in names:
        pixels = pictures(draw, 2)
        own = {"label": [name] * 2} if repeat else {}
        folder = root / "good" / f"label={name.replace(' ', '%20')}"
        write_table(folder / "0.parquet", pa.table({"image": [encoded(one) for one in pixels], **own}))
        truth += truth_of([name] * 2, pixels)
    mixed = "7" in names
    yield Case(root / "good", {}, None if mixed else truth, "another type" if mixed else ())
    other = pa.table({"image": [encoded(draw.pixels())], "label": ["dog"]})
    write_table(root / "bad" / "label=cat" / "0.parquet", other)
    yield Case(root / "bad", {}, None, "says dog, the folder label=cat")


def parts(draw: Draw, root: Path) -> Iterator[Case]:
    """One of several files is not there, is there twice, or is of another division."""
    num_parts, suffix = draw.number(2, 5), draw.one((".parquet", ".arrow", ".tar"))
    gone = draw.number(0, num_parts - 1)
    name = draw.one(("data-{:05d}-of-{:05d}", "set_{:d}_of_{:d}"))
    truth: Truth = Counter()
    files: dict[int, Path] = {}
    for part in range(num_parts):
        pixels = pictures(draw, 2)
        if part == gone:
            continue
        truth += truth_of([0, 1], pixels)
        file = root / f"{name.format(part, num_parts)}{suffix}"
        files[part] = write_part(file, pixels)
    missing = f"{name.format(gone, num_parts)}{suffix}"
    yield Case(root, {}, None, f"lacks {missing}")
    yield Case(root, {"missing_parts": "accept"}, truth, missing)
    last = draw.one(sorted(files))
    alone = next(iter(files.values()))
    if suffix != ".tar":
        (root / "more").mkdir()
        write_part(root / "more" / f"{name.format(last, num_parts)}-0123456789abcdef{suffix}", pictures(draw, 2))
        write_part(root / "more" / f"{name.format(last, num_parts)}-fedcba9876543210{suffix}", pictures(draw, 2))
        yield Case(root / "more", {"missing_parts": "accept"}, None, "the same part")
    (alone.parent / "alone").mkdir()
    file = write_part(alone.parent / "alone" / alone.name, pixels)
    yield Case(file, {}, truth_of([0, 1], pixels), f"alone was read, one of {num_parts} parts")


def write_part(file: Path, pixels: Sequence[np.ndarray]) -> Path:
    """Two pictures of the classes 0 and 1."""
    if file.suffix != ".tar":
        return write_table(file, pa.table({"image": [encoded(one) for one in pixels], "label": [0, 1]}))
    members = [(f"{file.stem}-{label}.png", encoded(one)) for label, one in enumerate(pixels)]
    return write_tar(file, [*members, *((f"{file.stem}-{label}.cls", b"%d" % label) for label in range(2))])


def odd_labels(draw: Draw, root: Path) -> Iterator[Case]:
    """Labels that are no class, or leave most numbers out."""
    odd = draw.one(
        ([0, 1, None], [0, 1, -1], [0.0, 1.0, float("nan")], [0, 0.5, 1], [0, 1, 10**12], [0.0, float("inf"), 1.0],
         ["a", None, "b"], [[0], [1], [0]], [0, 1, 2**62])
    )  # fmt: skip
    pixels = pictures(draw, 3)
    images = [encoded(one) for one in pixels]
    suffix = draw.one((".parquet", ".arrow"))
    bad = write_table(root / f"bad{suffix}", pa.table({"image": images, "label": odd}))
    yield Case(bad, {}, None, "label")
    yield Case(bad, {"label_column": "none"}, truth_of(["all"] * 3, pixels))
    sparse = [0, draw.number(20, 999), draw.number(1000, 5000)]
    path = write_table(root / f"sparse{suffix}", pa.table({"image": images, "label": sparse}))
    yield Case(path, {}, None, "--sparse-labels")
    for choice in ("remap", "keep"):
        yield Case(path, {"sparse_labels": choice}, truth_of(sparse, pixels))

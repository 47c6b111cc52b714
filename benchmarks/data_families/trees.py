"""Pictures in folders and archives, with labels from folders, descriptions, files beside them and tables."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_families.cases import (
    SIDE,
    SPELLINGS,
    Case,
    Draw,
    Files,
    encoded,
    packed,
    pictures,
    tree_files,
    truth_of,
    write_files,
    write_tar,
)


def trees(draw: Draw, root: Path) -> Iterator[Case]:
    """Folders of classes, with or without splits around or within them, in a folder or packed."""
    splits = draw.some(list(SPELLINGS), 2) if draw.chance() else [""]
    files, truth = tree_files(draw, splits, inner=draw.chance(0.3))
    path = packed(draw, root, files)
    for split, wanted in truth.items():
        yield Case(path, {"split": split} if split else {}, wanted)
    one_class = Counter(("all", pixels) for _, pixels in truth[splits[0]].elements())
    yield Case(path, {"label_column": "none"} | ({"split": splits[0]} if splits[0] else {}), one_class)
    if "train" in truth:
        yield Case(path, {}, truth["train"])
    elif splits != [""]:
        yield Case(path, {}, None, rf"--split .*{sorted(splits)[0]}")


def single_splits(draw: Draw, root: Path) -> Iterator[Case]:
    """Nothing but a folder of one split, with classes in it or with pictures; or pictures beside it."""
    spelt = draw.one(SPELLINGS["train"])
    pixels = pictures(draw, 4)
    names = [draw.one(("cat", "dog")) for _ in pixels] if draw.chance() else ["all"] * 4
    files = {
        f"{spelt}/{f'{name}/' if name != 'all' else ''}{number}.png": encoded(one)
        for number, (name, one) in enumerate(zip(names, pixels, strict=True))
    }
    yield Case(write_files(root / "only", files), {}, truth_of(names, pixels), "read the split")
    more = {f"{number}.png": encoded(draw.pixels()) for number in range(draw.number(5, 7))}
    yield Case(write_files(root / "beside", files | more), {}, None, "--split")
    yield Case(root / "beside", {"split": spelt}, truth_of(names, pixels), "pictures outside")


def described_trees(draw: Draw, root: Path) -> Iterator[Case]:
    """EDM2's dataset.json."""
    labels, pixels = [draw.number(0, 4) for _ in range(6)], pictures(draw, 6)
    files = {f"{i // 3:05d}/img{i:08d}.png": encoded(image) for i, image in enumerate(pixels)}
    listed = json.dumps({"labels": list(map(list, zip(files, labels, strict=True)))}).encode()
    missing = json.dumps({"labels": [[name, 0] for name in list(files)[1:]]}).encode()
    for content, truth, told in (
        (listed, truth_of(labels, pixels), "labels from dataset.json"),
        (b'{"labels": null}', truth_of(["all"] * 6, pixels), "one class"),
        (missing, None, r"img00000000\.png has no label"),
        (draw.one((b"[]", b"{", b'{"labels": 3}', b"\xff\xfe", b'{"labels": [["a"]]}')), None, "not the description"),
    ):
        place = root / f"{len(list(root.iterdir()))}"
        place.mkdir()
        yield Case(packed(draw, place, files | {"dataset.json": content}), {}, truth, told)


def web_datasets(draw: Draw, root: Path) -> Iterator[Case]:
    """Tars with labels beside the pictures; some samples twice, some labels without a picture."""
    labels, pixels = [draw.number(0, 4) for _ in range(6)], pictures(draw, 6)
    truth = truth_of(labels, pixels)
    shards: list[list[tuple[str, bytes]]] = [[], []]
    for index, (label, image) in enumerate(zip(labels, pixels, strict=True)):
        described = json.dumps({"y": label, "width": SIDE}).encode()
        shard = shards[index // 3]
        shard += [(f"{index:04d}.{draw.one(('png', 'PNG'))}", encoded(image)), (f"{index:04d}.json", described)]
        shard.append((f"{index:04d}.cls", b"%d\n" % label))
    test = [("9.png", encoded(draw.pixels())), ("9.cls", b"0"), ("9.json", b'{"y": 0}')]
    (root / "good").mkdir()
    for number, members in enumerate(shards):
        write_tar(root / "good" / f"set-train-{number:06d}.tar", members)
    write_tar(root / "good" / "set-test-000000.tar", test)
    yield Case(root / "good", {}, truth, r"\.cls files")
    yield Case(root / "good", {"label_column": "y"}, truth, "y of .json files")
    whole = shards[0] + shards[1]
    yield Case(write_tar(root / "orphan.tar", [*whole, ("77.cls", b"1")]), {}, truth, "a label without a picture")
    yield Case(write_tar(root / "twice.tar", [*whole, draw.one(whole)]), {}, None, "twice")
    two = write_tar(root / "two.tar", shards[0]).read_bytes() + write_tar(root / "second.tar", shards[1]).read_bytes()
    (root / "two.tar").write_bytes(two)
    yield Case(root / "two.tar", {}, None, "damaged behind 0002")
    bare = [member for member in whole if not member[0].endswith("cls")]
    yield Case(write_tar(root / "bare.tar", bare), {}, None, r"y, width.*--label-column")
    yield Case(write_tar(root / "packed.tar.gz", whole, "w:gz"), {}, None, "compressed with gzip")


def label_tables(draw: Draw, root: Path) -> Iterator[Case]:
    """metadata.csv, metadata.jsonl, labels.csv, ... beside pictures."""
    count = draw.number(3, 6)
    pixels, labels = pictures(draw, count), [draw.one(("cat", "dog")) for _ in range(count)]
    if draw.chance():
        labels = [str(draw.number(0, 1)) for _ in range(count - 1)] + ["1"]
    below = draw.one(("", "train/", "images/"))
    names = [f"{below}{number:03d}.png" for number in range(count)]
    files = {name: encoded(one) for name, one in zip(names, pixels, strict=True)}
    truth = truth_of(labels, pixels)
    rows = list(zip(names, labels, strict=True))
    form = draw.one(("metadata.csv", "metadata.jsonl", "labels.csv", "train.tsv"))

    def written(rows: Sequence[tuple[str, str]], column: str) -> Files:
        # Hugging Face's lie beside the pictures.
        place = below if form.startswith("metadata") else ""
        shown = [(name.removeprefix(place), label) for name, label in rows]
        return {place + form: table_text(draw, form, shown, column)}

    def packed_at(name: str, more: Files) -> Path:
        (root / name).mkdir()
        return packed(draw, root / name, files | more)

    yield Case(packed_at("good", written(rows, "label")), {}, truth, f"column label of .*{form}")
    unclear = packed_at("unclear", written(rows, "breed"))
    yield Case(unclear, {}, None, r"breed.*--label-column")
    yield Case(unclear, {"label_column": "breed"}, truth, "column breed")
    yield Case(unclear, {"label_column": "none"}, truth_of(["all"] * count, pixels))
    yield Case(unclear, {"label_column": "other"}, None, "no column other|no table .* column other")
    yield Case(packed_at("gap", written(rows[1:], "label")), {}, None, r"000\.png has no label")
    absent = written([*rows, (f"{below}999.png", labels[0])], "label")
    yield Case(packed_at("absent", absent), {}, truth, "named in a table of labels, but not there")
    double = written([*rows, (names[0], "z" + labels[0])], "label")
    yield Case(packed_at("double", double), {}, None, r"000\.png the label")


def table_text(draw: Draw, form: str, rows: Sequence[tuple[str, str]], column: str) -> bytes:
    """As a file of that name holds it."""
    if form.endswith("jsonl"):
        typed = [(name, int(label) if label.isdecimal() else label) for name, label in rows]
        return "\n".join(json.dumps({"file_name": name, column: label}) for name, label in typed).encode()
    delimiter = "\t" if form.endswith("tsv") else draw.one(",;")
    text = "\n".join(delimiter.join(row) for row in [("file_name", column), *rows])
    return text.encode(draw.one(("utf-8", "utf-8-sig"))) + draw.one((b"", b"\n", b"\r\n"))

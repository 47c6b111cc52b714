"""Tables beside pictures: each picture gets the label that its row says, or the table is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workloads.config.data import FolderData
from workloads.data.prepare import prepare
from workloads.data.prepared import PreparedDataset
from workloads.errors import DataError

SIDE = 8
GREY = {"a": 10, "b": 90, "c": 170, "d": 250}
"""By the picture's name, so that pixels tell which picture a label went to."""
KIND = {"a": "cat", "b": "dog", "c": "cat", "d": "ant"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, grey in GREY.items():
        Image.new("L", (SIDE, SIDE), grey).save(folder / f"{name}.png")
    return folder


def kinds_of(folder: Path, tmp_path: Path, **options: str) -> dict[str, str]:
    """The class of each picture as a trainer sees it, the picture told by its pixels."""
    prepare(FolderData(path=folder, image_size=SIDE, channels=1, **options), tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    everything = np.arange(dataset.num_images)
    greys = dataset.images(everything)[:, 0, 0, 0].astype(int)
    name_of = {grey: name for name, grey in GREY.items()}
    names = dataset.manifest.class_names
    return {name_of[grey]: names[label] for grey, label in zip(greys, dataset.labels(everything), strict=True)}


def rows(separator: str = ",", header: str = "file_name,label", suffix: str = ".png") -> str:
    """In an order that is not that of the names."""
    lines = [header, *(f"{name}{suffix},{KIND[name]}" for name in "cadb")]
    return "\n".join(line.replace(",", separator) for line in lines)


AS_LINES = "\n".join(json.dumps({"file_name": f"{name}.png", "label": KIND[name]}) for name in "dbca")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metadata.csv", rows()),
        ("metadata.jsonl", AS_LINES),
        ("labels.csv", rows(header="id,category", suffix="")),
        ("train.tsv", rows("\t")),
        ("labels.csv", rows(";")),
        ("labels.csv", "\ufeff" + rows().replace("\n", "\r\n")),
        ("labels.csv", rows(header="image,class").replace("a.png", "./a.png").replace("b.png", "pictures\\b.png")),
    ],
    ids=["csv", "lines", "names without suffix", "tabs", "semicolons", "Excel's", "paths"],
)
def test_each_picture_has_the_label_of_its_row(pictures: Path, tmp_path: Path, file: str, text: str) -> None:
    (pictures / file).write_bytes(text.encode())
    assert kinds_of(pictures, tmp_path) == KIND


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_excels_unicode_text_is_read(pictures: Path, tmp_path: Path, encoding: str) -> None:
    text = rows("\t").replace("\n", "\r\n")
    (pictures / "labels.csv").write_bytes(
        ("" if encoding == "utf-16" else "\ufeff").encode(encoding) + text.encode(encoding)
    )
    assert kinds_of(pictures, tmp_path) == KIND


def test_a_table_in_another_encoding_is_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "labels.csv").write_bytes(rows().replace("ant", "Köter").encode("cp1252"))
    with pytest.raises(DataError, match=r"labels.csv names the pictures, but is not text in UTF-8; save it as such"):
        kinds_of(pictures, tmp_path)


def test_a_column_may_be_called_like_a_picture(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").rename(pictures / "image.png")
    text = rows(header="image,class", suffix="").replace("\na,", "\nimage,")
    (pictures / "labels.csv").write_text(text)
    assert kinds_of(pictures, tmp_path) == KIND


def test_a_column_of_another_name_is_asked_for(pictures: Path, tmp_path: Path) -> None:
    text = rows(header="file_name,species")
    (pictures / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=r"none of its columns is clearly the labels \(species\); name one with"):
        kinds_of(pictures, tmp_path)
    with pytest.raises(DataError, match=r"has a column spezies; columns there are: species"):
        kinds_of(pictures, tmp_path, label_column="spezies")
    assert kinds_of(pictures, tmp_path, label_column="species") == KIND


def test_rows_of_another_split_are_not_read(pictures: Path, tmp_path: Path) -> None:
    lines = [f"{name}.png,{KIND[name]},{'test' if name == 'b' else 'train'}" for name in "abcd"]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]))
    assert kinds_of(pictures, tmp_path, split="train") == {name: KIND[name] for name in "acd"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rows().partition("\n")[2], r"labels.csv has no header: its first row names a picture, c.png; write the names"),
        (rows().partition("\n")[2].replace("c.png", "./c.png"), r"labels.csv has no header"),
        (rows() + "\na.png,dog", r"row 4 gives a.png the label dog, which had cat before; leave one of them"),
        ("file_name,label,class\na.png,1,2\nb.png,1,2", r"clearly the labels \(label, class\)"),
    ],
    ids=["no header", "no header, a path", "two labels", "two columns"],
)
def test_what_a_table_leaves_open_is_named(pictures: Path, tmp_path: Path, text: str, said: str) -> None:
    (pictures / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        kinds_of(pictures, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()

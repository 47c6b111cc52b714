"""Pictures in folders, zips and tars, with labels from the folders, a dataset.json, or files beside the pictures."""

import json
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workloads.config.data import ArchiveData, FolderData
from workloads.data import label_tables
from workloads.data.arrangement import Arrangement, arrange
from workloads.data.found import on_one_line, printable
from workloads.data.label_tables import LabelTable, PictureNames, choose_tables, label_table, labels_of
from workloads.data.labels import NO_LABELS, ONE_CLASS, numbered
from workloads.data.parts import about_one_part, check_parts
from workloads.data.pictures import BadPictureError
from workloads.data.source import ImageSource, Item, existing
from workloads.data.splits import files_of_split, split_of_folder
from workloads.data.trees import (
    DESCRIPTION,
    DirectoryTree,
    Parts,
    TarTree,
    Tree,
    ZipTree,
    described_labels,
    ignored,
)
from workloads.errors import DataError

CLASS_FILE = "cls"
"""What WebDataset calls the file with the label of a picture."""

ARCHIVES = (".zip", ".tar")
LISTS = (".json", ".txt", ".lst", *label_tables.SUFFIXES)


class TreeSource(ImageSource):
    """Pictures of a tree, labelled."""

    def __init__(self, config: FolderData | ArchiveData, tree: Tree, remarks: Sequence[str] = ()) -> None:
        self._config, self._tree = config, tree
        self._used: list[Parts] = []
        """Files beside the pictures that labels come from."""
        self._one_class = config.one_class or config.label_column == NO_LABELS
        self.remarks = ()
        sidecars = [] if self._one_class else self._sidecars()
        if (DESCRIPTION,) in tree.others and not self._one_class:
            self._pictures = self._by_description()
        elif sidecars:
            self._pictures = self._by_sidecars(sidecars)
        else:
            self._pictures = self._by_tables() or self._by_folders()
        tree.leave_out_others(used=self._used)
        self.num_images = len(self._pictures)
        self.left_out = tree.left_out.summary()
        self.remarks = (*self.remarks, *remarks)

    def items(self, start: int) -> Iterator[Item]:
        for path, label in self._pictures[start:]:
            yield Item(printable(self._tree.name(path)), label, lambda path=path: self._tree.read(path))  # type: ignore[misc]

    def signature(self) -> str:
        config = self._config
        choices = [config.split, config.one_class, config.label_column, config.sparse_labels]
        usual = [None, False, None, "refuse"]
        return self._tree.signature(self._used) + (str(choices) if choices != usual else "")

    def _by_folders(self) -> list[tuple[Parts, int]]:
        tree = self._tree
        arranged = self._arranged(split=self._split_inside(), one_class=self._one_class)
        without_labels = not self._one_class and arranged.class_names == (ONE_CLASS,)
        if without_labels and isinstance(self._config, ArchiveData) and arranged.pictures:
            raise DataError(self._no_labels())
        for index in arranged.outside:
            tree.left_out.add("in no class folder", tree.name(tree.pictures[index]))
        self.class_names, self.remarks = arranged.class_names, tuple(arranged.remarks)
        if not self._one_class and len(arranged.class_names) == 1:
            self.remarks += tuple(self._unread_lists())
        return [(tree.pictures[index], label) for index, label in arranged.pictures]

    def _arranged(self, *, split: str | None, one_class: bool) -> Arrangement:
        tree = self._tree
        paths = [tree.inside(path) for path in tree.pictures]
        return arrange(paths, set(tree.folders), where=str(tree.place), split=split, one_class=one_class)

    def _by_tables(self) -> list[tuple[Parts, int]] | None:
        """Labels from tables beside the pictures; None where there are none, or folders count more."""
        tree, config = self._tree, self._config
        paths = [path for path in tree.others if path[-1].lower().endswith(label_tables.SUFFIXES)]
        if self._one_class or not (paths or config.label_column):
            return None
        # A column may speak of splits where no folder does.
        folders_speak = any(split_of_folder(name) for path in tree.folders for name in path)
        split = self._split_inside()
        arranged = self._arranged(split=split if folders_speak else None, one_class=True)
        pictures = [tree.pictures[index] for index, _ in arranged.pictures]
        names = PictureNames(pictures)
        read = [(path, label_table(self._text(path), path, tree.place_of(path), names)) for path in paths]
        known = {table.place: path for path, table in read if table is not None}
        tables = [table for _, table in read if table is not None]
        chosen = choose_tables(tables, config.label_column, are_in_folders=arranged.num_folders > 1)
        if not chosen:
            self._check_no_column(tables)
            return None
        labels = labels_of(chosen, None if folders_speak else split)
        self._used = [known[table.place] for table, _ in chosen]
        everywhere = PictureNames(tree.pictures)
        for name in labels.not_there:
            if everywhere.find(name, ()) is None:
                tree.left_out.add("named in a table of labels, but not there", on_one_line(name))
        self.remarks = (
            *arranged.remarks,
            *(f"labels from the column {c} of {tree.name(known[t.place])}" for t, c in chosen),
        )
        if labels.of_another_split:
            self.remarks += (
                f"{len(labels.of_another_split)} pictures are of another split by the table, and not read",
            )
        kept = [path for path in pictures if path not in labels.of_another_split]
        return self._labelled({path: labels.of_picture.get(path) for path in kept}, "the table of labels")

    def _check_no_column(self, tables: Sequence[LabelTable]) -> None:
        """DataError if a column was asked for, for no table has it."""
        column = self._config.label_column
        if column is not None:
            there = ", ".join(sorted({name for table in tables for name in table.others})) or "none"
            raise DataError(
                f"{self._tree.place}: no table beside the pictures has a column {column}; columns there are: {there}"
            )

    def _text(self, path: Parts) -> bytes:
        """What a file beside the pictures holds; nothing if it cannot be read, and then it is left out like others."""
        try:
            return self._tree.read(path)
        except BadPictureError:
            return b""

    def _unread_lists(self) -> Iterator[str]:
        """Remarks about files of an unknown form that name pictures, for labels might be in them."""
        names = [path[-1].encode("utf-8", "surrogateescape") for path in self._tree.pictures[:20]]
        lists = [path for path in self._tree.others if path[-1].lower().endswith(LISTS)]
        for path in lists[:20]:
            content = self._text(path)
            if sum(name in content for name in names) >= min(2, len(names)):
                yield (
                    f"{printable(self._tree.name(path))} names pictures and was not read; labels in it can be given as "
                    "metadata.csv with the columns file_name and label"
                )

    def _split_inside(self) -> str | None:
        """The split that folders may speak of; where the names of archives do, it has been chosen already."""
        return None if isinstance(self._config, ArchiveData) and self._config.path.is_dir() else self._config.split

    def _no_labels(self) -> str:
        fields = next((_fields(self._tree.read(path)) for path in self._tree.others if _extension(path) == "json"), ())
        named = f"name the field of the .json files ({', '.join(fields)}) with --label-column, or " if fields else ""
        return (
            f"{self._tree.place} holds no labels: no folders of classes, no .{CLASS_FILE} files, no {DESCRIPTION}; "
            f"{named}read all as one class with --label-column none"
        )

    def _by_description(self) -> list[tuple[Parts, int]]:
        """dataset.json: {"labels": [[path, label], ...]}, or null for pictures without classes."""
        self._used = [(DESCRIPTION,)]
        label_of = described_labels(self._tree)
        if label_of is None:
            self.class_names, self.remarks = (ONE_CLASS,), (f"{DESCRIPTION} gives no labels: one class",)
            return [(path, 0) for path in self._tree.pictures]
        self.remarks = (f"labels from {DESCRIPTION}",)
        return self._labelled({path: label_of.get("/".join(path)) for path in self._tree.pictures}, DESCRIPTION)

    def _by_sidecars(self, sidecars: list[Parts]) -> list[tuple[Parts, int]]:
        """WebDataset: files that share all of their name up to its first dot belong together."""
        of_key = {_key(path): path for path in sidecars}
        pictures = defaultdict(list)
        for path in self._tree.pictures:
            pictures[_key(path)].append(path)
        double = next((paths for paths in pictures.values() if len(paths) > 1), None)
        if double is not None:
            names = ", ".join(self._tree.place_of(path) for path in double)
            raise DataError(f"{names} are two pictures of one sample; keep one kind of them")
        field = self._config_field()
        self.remarks = (f"labels from {'.cls files' if field is None else f'{field} of .json files'}",)
        self._used = sidecars
        for key in sorted(of_key.keys() - pictures.keys()):
            self._tree.left_out.add("a label without a picture", self._tree.name(of_key[key]))
        labels = {path: self._sidecar_label(of_key.get(_key(path))) for path in self._tree.pictures}
        return self._labelled(labels, "the file beside it")

    def _config_field(self) -> str | None:
        field = self._config.label_column
        return None if field == CLASS_FILE else field

    def _sidecars(self) -> list[Parts]:
        """Files with the label of a picture of the same name."""
        kind = CLASS_FILE if self._config_field() is None else "json"
        pictures = {_key(path) for path in self._tree.pictures}
        found = [path for path in self._tree.others if _extension(path) == kind]
        # One that belongs to no picture, metadata.json for instance, is something else.
        return found if kind == CLASS_FILE or any(_key(path) in pictures for path in found) else []

    def _sidecar_label(self, file: Parts | None) -> Any:
        if file is None:
            return None
        try:
            content = self._tree.read(file)
            if _extension(file) == CLASS_FILE:
                text = content.decode().strip()
                return int(text) if text.lstrip("-").isdecimal() else text
            return json.loads(content).get(self._config_field())
        except (BadPictureError, ValueError, AttributeError) as error:
            raise DataError(f"{self._tree.place_of(file)} holds no label ({error}); mend it") from None

    def _labelled(self, labels: dict[Parts, Any], source: str) -> list[tuple[Parts, int]]:
        for path, label in labels.items():
            place = self._tree.place_of(path)
            if label is None or label == "":
                raise DataError(f"{place} has no label in {source}; add it, or take the picture away")
            if not isinstance(label, int | float | str):
                raise DataError(f"{place} has the label {str(label)[:80]}, which is no number or word")
        classes = numbered(
            set(labels.values()),
            names=None,
            sparse=self._config.sparse_labels,
            locate=lambda wrong: self._tree.place_of(next(path for path, label in labels.items() if label == wrong)),
        )
        self.class_names = classes.names
        return [(path, classes.number_of[label]) for path, label in labels.items()]


def folder_source(config: FolderData) -> ImageSource:
    """Pictures in a folder."""
    root = existing(config.path)
    if not root.is_dir():
        raise DataError(f"data.path {root} is not a folder")
    return TreeSource(config, DirectoryTree(root))


def archive_source(config: ArchiveData) -> ImageSource:
    """Pictures in a zip, a tar or a folder of tars."""
    place = existing(config.path)
    if not place.is_dir():
        is_zip = place.suffix.lower() == ".zip" or zipfile.is_zipfile(place)
        tree: Tree = ZipTree(place, [place]) if is_zip else TarTree(place, [place])
        return TreeSource(config, tree, about_one_part(place.name))
    files = tars_in(place)
    parts = [file.relative_to(place).parts for file in files]
    kept = [files[index] for index in files_of_split(parts, config.split, str(place))]
    remarks = check_parts([file.relative_to(place).parts for file in kept], str(place), config.missing_parts)
    tree = TarTree(place, kept)
    for file in sorted(set(files) - set(kept)):
        tree.left_out.add("of another split", str(file.relative_to(place)))
    return TreeSource(config, tree, remarks)


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder, at any depth, in order."""
    tars = (file for file in folder.rglob("*") if file.suffix.lower() == ".tar")
    return sorted(file for file in tars if not any(map(ignored, file.relative_to(folder).parts)))


def is_archive(file: Path) -> bool:
    """Whether it is a zip or an uncompressed tar, whatever its name."""
    if not file.is_file() or file.suffix.lower() in {".npz", ".parquet"}:
        return False
    return file.suffix.lower() in ARCHIVES or zipfile.is_zipfile(file) or _is_tar(file)


def _is_tar(file: Path) -> bool:
    try:
        return file.stat().st_size >= tarfile.BLOCKSIZE and tarfile.is_tarfile(file)
    except OSError:
        return False


def _key(path: Parts) -> Parts:
    return (*path[:-1], path[-1].partition(".")[0])


def _extension(path: Parts) -> str:
    return path[-1].partition(".")[2].lower()


def _fields(content: bytes) -> tuple[str, ...]:
    try:
        described = json.loads(content)
    except ValueError:
        return ()
    return tuple(described) if isinstance(described, dict) else ()

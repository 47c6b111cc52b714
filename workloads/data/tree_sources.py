"""Pictures in folders, zips and tars, with labels from the folders, a dataset.json, or files beside the pictures."""

import json
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workloads.config.data import ArchiveData, FolderData
from workloads.data.arrangement import arrange
from workloads.data.found import printable
from workloads.data.labels import ONE_CLASS, numbered
from workloads.data.pictures import BadPictureError
from workloads.data.source import ImageSource, Item, existing
from workloads.data.splits import files_of_split
from workloads.data.trees import DESCRIPTION, DirectoryTree, Parts, TarTree, Tree, ZipTree, ignored
from workloads.errors import DataError

CLASS_FILE = "cls"
"""What WebDataset calls the file with the label of a picture."""

ARCHIVES = (".zip", ".tar")


class TreeSource(ImageSource):
    """Pictures of a tree, labelled."""

    def __init__(self, config: FolderData | ArchiveData, tree: Tree) -> None:
        self._config, self._tree = config, tree
        described = next((path for path in tree.others if path == (DESCRIPTION,)), None)
        sidecars = [path for path in tree.others if _extension(path) == CLASS_FILE or _json_of(config, path)]
        if described is not None and not self._config.one_class:
            self._pictures = self._by_description(described)
        elif sidecars and not self._config.one_class:
            self._pictures = self._by_sidecars(sidecars)
        else:
            self._pictures = self._by_folders()
        tree.leave_out_others(used=(f".{CLASS_FILE}",) if sidecars else ())
        self.num_images = len(self._pictures)
        self.left_out = tree.left_out.summary()

    def items(self, start: int) -> Iterator[Item]:
        for path, label in self._pictures[start:]:
            yield Item(printable(self._tree.name(path)), label, lambda path=path: self._tree.read(path))  # type: ignore[misc]

    def signature(self) -> str:
        config = self._config
        choices = [config.split, self._config.one_class, getattr(config, "label_column", None)]
        return self._tree.signature() + (str(choices) if choices != [None, False, None] else "")

    def _by_folders(self) -> list[tuple[Parts, int]]:
        tree = self._tree
        paths = [tree.inside(path) for path in tree.pictures]
        folders = set(tree.folders)
        where = str(tree.place)
        arranged = arrange(paths, folders, where=where, split=self._split_inside(), one_class=self._config.one_class)
        if (
            not self._config.one_class
            and isinstance(self._config, ArchiveData)
            and arranged.class_names == (ONE_CLASS,)
            and arranged.pictures
        ):
            raise DataError(self._no_labels())
        for index in arranged.outside:
            tree.left_out.add("in no class folder", tree.name(tree.pictures[index]))
        self.class_names, self.remarks = arranged.class_names, tuple(arranged.remarks)
        return [(tree.pictures[index], label) for index, label in arranged.pictures]

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

    def _by_description(self, file: Parts) -> list[tuple[Parts, int]]:
        """dataset.json: {"labels": [[path, label], ...]}, or null for pictures without classes."""
        try:
            labels = json.loads(self._tree.read(file))["labels"]
            label_of = None if labels is None else {str(path): label for path, label in labels}
        except (ValueError, TypeError, KeyError, BadPictureError) as error:
            raise DataError(
                f"{self._tree.place_of(file)} is not the description of a data set ({error}); it should be "
                '{"labels": [[path, label], ...]}; take it away to go by folders'
            ) from None
        self._tree.others.remove(file)
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
        remarks = [f"labels from {'.cls files' if self._config_field() is None else self._config_field()}"]
        self.remarks = tuple(remarks)
        labels = {path: self._sidecar_label(of_key.get(_key(path))) for path in self._tree.pictures}
        return self._labelled(labels, "the file beside it")

    def _config_field(self) -> str | None:
        field: str | None = getattr(self._config, "label_column", None)
        return None if field == CLASS_FILE else field

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
            sparse=self._config.sparse_labels if isinstance(self._config, ArchiveData) else "refuse",
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
        return TreeSource(config, tree)
    files = tars_in(place)
    parts = [file.relative_to(place).parts for file in files]
    kept = [files[index] for index in files_of_split(parts, config.split, str(place))]
    tree = TarTree(place, kept)
    for file in sorted(set(files) - set(kept)):
        tree.left_out.add("of another split", str(file.relative_to(place)))
    return TreeSource(config, tree)


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


def _json_of(config: FolderData | ArchiveData, path: Parts) -> bool:
    field = getattr(config, "label_column", None)
    return field not in {None, CLASS_FILE} and _extension(path) == "json"


def _fields(content: bytes) -> tuple[str, ...]:
    try:
        described = json.loads(content)
    except ValueError:
        return ()
    return tuple(described) if isinstance(described, dict) else ()

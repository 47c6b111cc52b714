"""Latents that somebody else encoded, one .npy each, as trainers of DiT, Remix-DiT, EDM2 and REPA keep them."""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads.config.data import LatentFilesData
from workloads.data.found import LeftOutFiles, printable
from workloads.data.labels import ONE_CLASS, numbered
from workloads.data.latents import VaeScale
from workloads.data.pictures import BadPictureError, read_file
from workloads.data.source import ImageSource, Item, existing
from workloads.data.trees import DESCRIPTION, DirectoryTree, Tree, ZipTree, described_labels, files_signature
from workloads.errors import DataError

FEATURES, LABELS = "_features", "_labels"
"""How the names of the two folders of DiT end."""

ARRAY = ".npy"


class _Form(NamedTuple):
    """What the files of one data set hold."""

    shape: tuple[int, int, int]
    """Of the latent that is taken: channels, height, width."""

    of_distribution: bool
    """Whether a mean and a spread, as the VAE put them out, stand in the place of a latent."""

    is_pair: bool
    """Whether the latent of the mirrored picture comes behind."""


class LatentFilesSource(ImageSource, ABC):
    """Latents with a label each, wherever they lie."""

    def __init__(self, config: LatentFilesData) -> None:
        self._scale = VaeScale.of(config.vae)
        self._left_out = LeftOutFiles()
        self._open(existing(config.path))
        if not self.num_images:
            raise DataError(f"{config.path} holds no {ARRAY} files of latents")
        self._form = self._form_of(self._first())
        self.latent_shape = self._form.shape
        self.left_out = self._left_out.summary()
        self.remarks += (self._remark(),)

    @abstractmethod
    def _open(self, root: Path) -> None:
        """Find files, labels and class names."""

    @abstractmethod
    def _content(self, index: int) -> bytes:
        """A file. BadPictureError if it cannot be read."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """What messages call it."""

    def items(self, start: int) -> Iterator[Item]:
        for index in range(start, self.num_images):
            yield Item(self._name(index), self._labels[index], lambda index=index: self._latent(index))  # type: ignore[misc]

    def _number(self, labels: Sequence[int], names: Sequence[str]) -> None:
        """Class names and classes of all labels."""
        classes = numbered(
            set(labels), names=None, sparse="keep", locate=lambda wrong: names[list(labels).index(wrong)]
        )
        self.class_names = classes.names
        self._labels = [classes.number_of[label] for label in labels]
        self.num_images = len(labels)

    def _first(self) -> np.ndarray:
        try:
            return read_array(self._content(0))
        except BadPictureError as error:
            raise DataError(f"{self._name(0)} holds no latent: {error}") from None

    def _form_of(self, array: np.ndarray) -> _Form:
        shape = array.shape[1:] if array.ndim == 4 and len(array) in {1, 2} else array.shape
        channels = self._scale.latent_channels
        is_square = len(shape) == 3 and shape[1] == shape[2]
        if array.dtype.kind != "f" or not is_square or shape[0] not in {channels, 2 * channels}:
            raise DataError(
                f"{self._name(0)} holds no latent of the VAE {self._scale.path}: {array.dtype} {array.shape}, where it "
                f"makes fractions ({channels}, H, H) or, as mean and spread, ({2 * channels}, H, H)"
            )
        return _Form((channels, shape[1], shape[2]), shape[0] != channels, array.ndim == 4 and len(array) == 2)

    def _remark(self) -> str:
        treated = "the mean of mean and spread, scaled here" if self._form.of_distribution else "taken as scaled"
        pair = "; the first of two, the other being of the mirrored picture" if self._form.is_pair else ""
        return f"latents of the shape {self._form.shape}, {treated} by the VAE's factor{pair}"

    def _latent(self, index: int) -> np.ndarray:
        array = read_array(self._content(index))
        latent = array[0] if array.ndim == 4 and len(array) == 1 + self._form.is_pair else array
        channels, height, width = self._form.shape
        expected = (channels * (1 + self._form.of_distribution), height, width)
        if latent.shape != expected or latent.dtype.kind != "f":
            raise BadPictureError("another shape", f"{array.dtype} {array.shape}, where the first file has {expected}")
        if not np.isfinite(latent).all():
            raise BadPictureError("not finite", "NaN or infinity among its values")
        if self._form.of_distribution:
            latent = self._scale.scaled(latent[:channels].astype(np.float32))
        return latent.astype(np.float16)


class PairedLatents(LatentFilesSource):
    """A folder of latents and one of labels, with a file of the same name for each image."""

    def _open(self, root: Path) -> None:
        folders = latent_folders(root)
        assert folders is not None
        self._root = root
        features, labels = folders
        self._files = sorted((file for file in features.iterdir() if _is_array(file, self._left_out)), key=_by_number)
        places = [labels / file.name for file in self._files]
        self._number([_label_of(place) for place in places], [str(place) for place in places])

    def _content(self, index: int) -> bytes:
        return read_file(self._files[index])

    def _name(self, index: int) -> str:
        return self._files[index].name

    def signature(self) -> str:
        return files_signature(self._files, self._root)


class DescribedLatents(LatentFilesSource):
    """Files in a folder or zip with the labels in its dataset.json, as EDM2 and REPA write them."""

    def _open(self, root: Path) -> None:
        self._tree: Tree = DirectoryTree(root) if root.is_dir() else ZipTree(root, [root])
        self._arrays = [path for path in self._tree.others if path[-1].lower().endswith(ARRAY)]
        for path in self._tree.pictures:
            self._left_out.add("a picture beside latents", self._tree.name(path))
        label_of = described_labels(self._tree)
        if label_of is None:
            self.class_names, self.num_images = (ONE_CLASS,), len(self._arrays)
            self._labels = [0] * self.num_images
            self.remarks = (f"{DESCRIPTION} gives no labels: one class",)
            return
        names = [self._tree.place_of(path) for path in self._arrays]
        labels = [label_of.get("/".join(path)) for path in self._arrays]
        wrong = next((i for i, label in enumerate(labels) if type(label) is not int), None)
        if wrong is not None:
            raise DataError(f"{names[wrong]} has the label {labels[wrong]} in {DESCRIPTION}, which is no whole number")
        self._number([int(label) for label in labels if label is not None], names)

    def _content(self, index: int) -> bytes:
        return self._tree.read(self._arrays[index])

    def _name(self, index: int) -> str:
        return printable(self._tree.name(self._arrays[index]))

    def signature(self) -> str:
        return self._tree.signature([*self._arrays, (DESCRIPTION,)])


def latents_source(config: LatentFilesData) -> ImageSource:
    """Latents in whichever of the two arrangements they are."""
    root = existing(config.path)
    if latent_folders(root) is not None:
        return PairedLatents(config)
    if are_described_latents(root):
        return DescribedLatents(config)
    raise DataError(
        f"data.path {root} holds neither folders ...{FEATURES} and ...{LABELS} of {ARRAY} files, "
        f"nor {ARRAY} files and a {DESCRIPTION}"
    )


def latent_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of latents and of labels, if the place holds one of each."""
    if not root.is_dir():
        return None
    features, labels = ([path for path in root.iterdir() if path.name.endswith(end)] for end in (FEATURES, LABELS))
    return (features[0], labels[0]) if len(features) == len(labels) == 1 else None


def are_described_latents(root: Path) -> bool:
    """Whether a folder or zip has a dataset.json that speaks of .npy files."""
    if root.is_dir():
        file = root / DESCRIPTION
        return file.is_file() and next(root.rglob(f"[!.]*{ARRAY}"), None) is not None
    if not root.is_file() or root.suffix.lower() == ".npz" or not zipfile.is_zipfile(root):
        return False
    try:
        with zipfile.ZipFile(root) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False
    return DESCRIPTION in names and any(name.lower().endswith(ARRAY) for name in names)


def read_array(content: bytes) -> np.ndarray:
    """What a .npy holds. BadPictureError if it holds no array."""
    try:
        # A pickle could run code.
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadPictureError("no array", str(error).splitlines()[0]) from None
    if not isinstance(found, np.ndarray):
        raise BadPictureError("no array", "several arrays in one file")
    return found


def _label_of(file: Path) -> int:
    try:
        label = read_array(read_file(file))
    except BadPictureError as error:
        raise DataError(f"{file} holds no label: {error}") from None
    if label.size != 1 or label.dtype.kind not in "iu":
        raise DataError(f"{file} holds {label.dtype} {label.shape}, not one whole number as a label")
    return int(label.reshape(()))


def _is_array(file: Path, left_out: LeftOutFiles) -> bool:
    if file.suffix == ARRAY and not file.name.startswith("."):
        return True
    left_out.add("hidden" if file.name.startswith(".") else "no array", file.name)
    return False


def _by_number(file: Path) -> tuple[int, str]:
    """0.npy, 1.npy, ..., 10.npy in the order they were encoded."""
    return (int(file.stem) if file.stem.isdecimal() else -1, file.name)

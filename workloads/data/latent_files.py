"""Latents that somebody else encoded, one .npy each, as trainers of DiT keep them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from workloads.config.data import LatentFilesData
from workloads.data.found import LeftOutFiles
from workloads.data.labels import numbered
from workloads.data.pictures import BadPictureError, read_file
from workloads.data.source import ImageSource, Item, existing
from workloads.data.trees import files_signature
from workloads.errors import DataError

FEATURES, LABELS = "_features", "_labels"
"""How the names of the two folders end."""


class LatentFilesSource(ImageSource):
    """A folder of latents and one of labels, with a file of the same name for each image."""

    def __init__(self, config: LatentFilesData) -> None:
        self._root = existing(config.path)
        folders = latent_folders(self._root)
        if folders is None:
            raise DataError(f"data.path {self._root} holds no folders ...{FEATURES} and ...{LABELS} of .npy files")
        features, labels = folders
        left_out = LeftOutFiles()
        self._files = sorted((file for file in features.iterdir() if _is_array(file, left_out)), key=_by_number)
        self._labels = [_label_of(labels / file.name) for file in self._files]
        classes = numbered(
            set(self._labels),
            names=None,
            sparse="keep",
            locate=lambda wrong: str(labels / self._files[self._labels.index(wrong)].name),
        )
        self.class_names, self.num_images = classes.names, len(self._files)
        self.latent_shape = self._first_shape()
        self.left_out = left_out.summary()
        self.remarks = (f"latents of the shape {self.latent_shape}, taken as scaled by the VAE's factor",)

    def items(self, start: int) -> Iterator[Item]:
        for file, label in zip(self._files[start:], self._labels[start:], strict=True):
            yield Item(file.name, label, lambda file=file: self._latent(file))  # type: ignore[misc]

    def signature(self) -> str:
        return files_signature(self._files, self._root)

    def _first_shape(self) -> tuple[int, int, int]:
        if not self._files:
            raise DataError(f"{self._root} holds no .npy files of latents")
        try:
            channels, height, width = read_latent(self._files[0]).shape
        except BadPictureError as error:
            raise DataError(f"{self._files[0]} holds no latent: {error}") from None
        return channels, height, width

    def _latent(self, file: Path) -> np.ndarray:
        latent = read_latent(file)
        if latent.shape != self.latent_shape:
            raise BadPictureError("another shape", f"{latent.shape}, where the first has {self.latent_shape}")
        return latent


def latent_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of latents and of labels, if the place holds one of each."""
    if not root.is_dir():
        return None
    features, labels = ([path for path in root.iterdir() if path.name.endswith(end)] for end in (FEATURES, LABELS))
    return (features[0], labels[0]) if len(features) == len(labels) == 1 else None


def read_latent(file: Path) -> np.ndarray:
    """float16 (C, H, W). BadPictureError if the file holds none."""
    array = _array(file)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape[1] != array.shape[2]:
        raise BadPictureError("no latent", f"{array.dtype} {array.shape}, not fractions (C, H, H)")
    if not np.isfinite(array).all():
        raise BadPictureError("not finite", "NaN or infinity among its values")
    return array.astype(np.float16)


def _array(file: Path) -> np.ndarray:
    import io

    try:
        # A pickle could run code.
        found = np.load(io.BytesIO(read_file(file)), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadPictureError("no array", str(error).splitlines()[0]) from None
    if not isinstance(found, np.ndarray):
        raise BadPictureError("no array", "several arrays in one file")
    return found


def _label_of(file: Path) -> int:
    try:
        label = _array(file)
    except BadPictureError as error:
        raise DataError(f"{file} holds no label: {error}") from None
    if label.size != 1 or label.dtype.kind not in "iu":
        raise DataError(f"{file} holds {label.dtype} {label.shape}, not one whole number as a label")
    return int(label.reshape(()))


def _is_array(file: Path, left_out: LeftOutFiles) -> bool:
    if file.suffix == ".npy" and not file.name.startswith("."):
        return True
    left_out.add("hidden" if file.name.startswith(".") else "no array", file.name)
    return False


def _by_number(file: Path) -> tuple[int, str]:
    """0.npy, 1.npy, ..., 10.npy in the order they were encoded."""
    return (int(file.stem) if file.stem.isdecimal() else -1, file.name)

"""Where images come from. A new kind is a class in config/data.py, a class of this folder, and a line in SOURCES."""

import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from workloads.config.base import StrictConfig
from workloads.config.data import (
    AnyData,
    ArchiveData,
    ArrowData,
    CIFAR10Data,
    EmbeddedData,
    FolderData,
    LatentFilesData,
    ParquetData,
    TorchvisionData,
)
from workloads.data.latent_files import are_described_latents, latent_folders, latents_source
from workloads.data.pictures import SUFFIXES, BadPictureError, PictureContent, require_file
from workloads.data.prepared import MANIFEST
from workloads.data.source import ArraySource, ImageSource, Item, existing
from workloads.data.table_files import ARROW_SUFFIXES, PARQUET_SUFFIXES, has_file
from workloads.data.tables import TableSource
from workloads.data.tree_sources import archive_source, folder_source, is_archive
from workloads.data.trees import files_signature
from workloads.errors import DataError
from workloads.sealed import content_hash

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class TorchvisionSource(ImageSource):
    """Any torchvision data set of (PIL image, integer class) that is already on disk."""

    def __init__(self, config: TorchvisionData) -> None:
        self._config = config
        root = existing(config.path)
        self._dataset = _open_torchvision(config.dataset, root, config.split)
        self.num_images = len(self._dataset)
        classes = getattr(self._dataset, "classes", None)
        if classes is None:
            raise DataError(f"data.dataset {config.dataset} has no classes; only image classification sets can be used")
        self.class_names = tuple(str(name) for name in classes)

    def items(self, start: int) -> Iterator[Item]:
        for index in range(start, self.num_images):
            image, label = self._image(index)
            yield Item(f"{self._config.dataset}[{index}]", label, lambda image=image: _or_raise(image))  # type: ignore[misc]

    def signature(self) -> str:
        config = self._config
        return content_hash([config.dataset, config.split, str(config.path.resolve()), self.num_images])

    def _image(self, index: int) -> tuple[PictureContent | BadPictureError, int]:
        try:
            image, label = self._dataset[index]
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            return BadPictureError("damaged", str(error)), 0
        if not isinstance(label, int | np.integer) or not hasattr(image, "convert"):
            raise DataError(
                f"data.dataset {self._config.dataset} gives {type(image).__name__} and {type(label).__name__}, not a "
                "picture and its class; only image classification sets can be used"
            )
        return image, int(label)


def _or_raise(image: PictureContent | BadPictureError) -> PictureContent:
    if isinstance(image, BadPictureError):
        raise image
    return image


def embedded_source(config: EmbeddedData) -> ImageSource:  # noqa: ARG001
    """The Fashion-MNIST subset in the package."""
    with resources.as_file(resources.files("workloads.data") / "assets" / "fashion-mnist-10k.parquet") as file:
        return TableSource(ParquetData(path=file))


def cifar10_source(config: CIFAR10Data) -> ImageSource:
    """CIFAR-10 from an .npz, or from torchvision's download, which torchvision checks by MD5."""
    path = existing(config.path)
    if path.is_dir():
        return TorchvisionSource(TorchvisionData(dataset="CIFAR10", path=path, split=config.split))
    require_file(path, "an .npz of arrays")
    images, labels = _arrays(path, [f"{config.split}_images", f"{config.split}_labels"])
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{path} has images {images.dtype} {images.shape}; CIFAR-10 is uint8 (N, 32, 32, 3)")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(f"{path} has labels {labels.dtype} {labels.shape}; it needs one whole number per image")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CIFAR10_CLASSES):
        raise DataError(f"{path} has labels from {labels.min()} to {labels.max()}; CIFAR-10 has classes 0 to 9")
    signature = f"{files_signature([path], path.parent)}-{config.split}"
    return ArraySource(images, labels, CIFAR10_CLASSES, signature)


def _arrays(path: Path, names: list[str]) -> list[np.ndarray]:
    try:
        # A pickle could run code.
        with np.load(path, allow_pickle=False) as arrays:
            if not set(names) <= set(arrays.files):
                raise DataError(f"{path} holds {arrays.files}; it needs {names}")
            return [arrays[name] for name in names]
    except (zipfile.BadZipFile, OSError, EOFError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        words = "it holds Python objects, not numbers" if "pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as an .npz of uint8 arrays: {words}") from None


SOURCES: dict[type[StrictConfig], Callable[[Any], ImageSource]] = {
    EmbeddedData: embedded_source,
    FolderData: folder_source,
    ArchiveData: archive_source,
    ParquetData: TableSource,
    ArrowData: TableSource,
    LatentFilesData: latents_source,
    TorchvisionData: TorchvisionSource,
    CIFAR10Data: cifar10_source,
}


def open_source(config: AnyData) -> ImageSource:
    """The source behind a config. DataError if it is missing, empty, or has more classes than declared."""
    place = getattr(config, "path", None)
    if place is not None and (place / MANIFEST).is_file() and next(place.glob("shard-*.arrow"), None) is not None:
        raise DataError(
            f"{place} is prepared data already: look at it with `rememe data show {place}`, train on it with "
            f"data='{{kind: prepared, path: {place}}}'"
        )
    source = SOURCES[type(config)](config)
    if source.num_images == 0:
        rest = ", ".join(f"{one.count} {one.reason}: {one.example}" for one in source.left_out)
        raise DataError(
            f"data.path {getattr(config, 'path', '')} holds no images" + (f" (left out: {rest})" if rest else "")
        )
    if config.num_classes is not None and len(source.class_names) > config.num_classes:
        raise DataError(f"data.num_classes is {config.num_classes}, but the data has {len(source.class_names)} classes")
    return source


def detect_source(text: str) -> dict[str, Any]:
    """What kind of source a word on the command line means, as the fields of a data section."""
    if text == "embedded":
        return {"kind": "embedded"}
    if text.startswith("torchvision:"):
        parts = text.split(":", 2)
        if len(parts) != 3:
            raise DataError(
                f"{text!r} is not of the form torchvision:DATASET:ROOT, for instance torchvision:MNIST:data"
            )
        return {"kind": "torchvision", "dataset": parts[1], "path": parts[2]}
    path = existing(Path(text))
    if path.suffix.lower() == ".npz" or (path / "cifar-10-batches-py").is_dir():
        return {"kind": "cifar10", "path": path}
    for kind, meant in KINDS.items():
        if meant(path):
            return {"kind": kind, "path": path}
    if path.is_file():
        require_file(path, "a folder, an archive or a table of images")
    raise DataError(f"{text} is neither a folder, an archive, a table, nor an .npz; see: rememe data prepare --help")


def _is_table(path: Path, suffixes: frozenset[str], magic: bytes) -> bool:
    if path.is_dir():
        return has_file(path, suffixes)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() in suffixes or file.read(len(magic)) == magic


KINDS: dict[str, Callable[[Path], bool]] = {
    "latent_files": lambda path: latent_folders(path) is not None or are_described_latents(path),
    "parquet": lambda path: _is_table(path, PARQUET_SUFFIXES, b"PAR1"),
    "arrow": lambda path: _is_table(path, ARROW_SUFFIXES, b"ARROW1"),
    "archive": lambda path: is_archive(path) or (has_file(path, frozenset({".tar"})) and not has_file(path, SUFFIXES)),
    "folder": lambda path: path.is_dir(),
}
"""What each kind of source looks like; the first that fits is meant."""


def _open_torchvision(name: str, root: Path, split: str) -> Any:
    import inspect

    import torchvision

    cls: Any = getattr(torchvision.datasets, name, None)
    if not callable(cls):
        raise DataError(f"data.dataset {name!r} is not in torchvision.datasets; names are case-sensitive: FashionMNIST")
    parameters = inspect.signature(cls).parameters
    # Never a download in the middle of a run.
    options: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        options["train"] = split == "train"
    elif "split" in parameters:
        options["split"] = split
    try:
        dataset = cls(root, **options)
        len(dataset)
        return dataset
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        words = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"torchvision finds no {name} in {root} ({words[0]}); data.path is the root it was "
            "downloaded to, and data.dataset a set of pictures with classes"
        ) from None

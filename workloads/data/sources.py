"""Where images come from. A new kind is a class in config/data.py, a class here, and a line in SOURCES."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from workloads.config.base import content_hash
from workloads.config.data import (
    AnyData,
    CIFAR10Data,
    EmbeddedData,
    FolderData,
    ParquetData,
    TorchvisionData,
)
from workloads.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Item(NamedTuple):
    """One image, not yet decoded."""

    name: str
    label: int
    decode: Callable[[], Image.Image]


class ImageSource(ABC):
    """A finite, ordered sequence of images with classes."""

    class_names: tuple[str, ...]
    num_images: int

    @abstractmethod
    def items(self, start: int) -> Iterator[Item]:
        """All items from index `start` on, in an order that never changes."""

    @abstractmethod
    def signature(self) -> str:
        """Changes when the source does; cheap, so it looks at names, sizes and times rather than at pixels."""


class FolderSource(ImageSource):
    """One subfolder per class, in alphabetical order."""

    def __init__(self, config: FolderData) -> None:
        self._root = _existing(config.path)
        folders = sorted(path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise DataError(f"data.path {self._root} has no subfolders; put the images of each class in one")
        self.class_names = tuple(folder.name for folder in folders)
        self._files = [
            (file, label)
            for label, folder in enumerate(folders)
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        self.num_images = len(self._files)

    def items(self, start: int) -> Iterator[Item]:
        for file, label in self._files[start:]:
            yield Item(str(file.relative_to(self._root)), label, lambda file=file: Image.open(file))  # type: ignore[misc]

    def signature(self) -> str:
        return _files_signature([file for file, _ in self._files], self._root)


class ParquetSource(ImageSource):
    """Parquet files in the Hugging Face layout: a struct image{bytes, path} and an integer label."""

    def __init__(self, config: ParquetData) -> None:
        self._root = _existing(config.path)
        self._files = [self._root] if self._root.is_file() else sorted(self._root.rglob("*.parquet"))
        if not self._files:
            raise DataError(f"data.path {self._root} holds no .parquet files")
        schema = pq.read_schema(self._files[0])
        if not {"image", "label"} <= set(schema.names):
            raise DataError(f"{self._files[0]} has columns {schema.names}; it needs image{{bytes, path}} and label")
        self.num_images = sum(pq.read_metadata(file).num_rows for file in self._files)
        self.class_names = self._read_class_names(schema)

    def _read_class_names(self, schema: Any) -> tuple[str, ...]:
        import json

        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described.get("info", {}).get("features", {}).get("label", {}).get("names")
        if names:
            return tuple(names)
        highest = max(int(np.max(pq.read_table(file, columns=["label"])["label"].to_numpy())) for file in self._files)
        return tuple(str(label) for label in range(highest + 1))

    def items(self, start: int) -> Iterator[Item]:
        position = 0
        for file in self._files:
            num_rows = pq.read_metadata(file).num_rows
            if position + num_rows <= start:
                position += num_rows
                continue
            for batch in pq.ParquetFile(file).iter_batches(1024, columns=["image", "label"]):
                for row in batch.to_pylist():
                    if position >= start:
                        content = row["image"]["bytes"]
                        name = row["image"].get("path") or f"{file.name}:{position}"
                        yield Item(name, row["label"], lambda content=content: Image.open(io.BytesIO(content)))  # type: ignore[misc]
                    position += 1

    def signature(self) -> str:
        root = self._root if self._root.is_dir() else self._root.parent
        return _files_signature(self._files, root)


class ArraySource(ImageSource):
    """Images already in memory as uint8 (N, H, W, C) or (N, H, W)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], signature: str) -> None:
        self._images, self._labels = images, labels
        self.class_names = class_names
        self.num_images = len(images)
        self._signature = signature

    def items(self, start: int) -> Iterator[Item]:
        for index in range(start, self.num_images):
            pixels = self._images[index]
            yield Item(str(index), int(self._labels[index]), lambda pixels=pixels: Image.fromarray(pixels))  # type: ignore[misc]

    def signature(self) -> str:
        return self._signature


class TorchvisionSource(ImageSource):
    """Any torchvision data set of (PIL image, integer class) that is already on disk."""

    def __init__(self, config: TorchvisionData) -> None:
        self._config = config
        root = _existing(config.path)
        self._dataset = _open_torchvision(config.dataset, root, config.split)
        self.num_images = len(self._dataset)
        classes = getattr(self._dataset, "classes", None)
        if classes is None:
            raise DataError(f"data.dataset {config.dataset} has no classes; only image classification sets can be used")
        self.class_names = tuple(str(name) for name in classes)

    def items(self, start: int) -> Iterator[Item]:
        for index in range(start, self.num_images):
            image, label = self._dataset[index]
            yield Item(str(index), int(label), lambda image=image: image)  # type: ignore[misc]

    def signature(self) -> str:
        config = self._config
        return content_hash([config.dataset, config.split, str(config.path.resolve()), self.num_images])


def embedded_source(config: EmbeddedData) -> ImageSource:  # noqa: ARG001
    """The Fashion-MNIST subset in the package."""
    with resources.as_file(resources.files("workloads.data") / "assets" / "fashion-mnist-10k.parquet") as file:
        return ParquetSource(ParquetData(path=file))


def cifar10_source(config: CIFAR10Data) -> ImageSource:
    """CIFAR-10 from an .npz, or from torchvision's download, which torchvision checks by MD5."""
    path = _existing(config.path)
    if path.is_dir():
        return TorchvisionSource(TorchvisionData(dataset="CIFAR10", path=path, split=config.split))
    # A pickle could run code.
    with np.load(path, allow_pickle=False) as arrays:
        names = [f"{config.split}_images", f"{config.split}_labels"]
        if not set(names) <= set(arrays.files):
            raise DataError(f"{path} holds {arrays.files}; it needs {names}")
        images, labels = (arrays[name] for name in names)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) != len(labels):
        raise DataError(f"{path} has images {images.dtype} {images.shape}; CIFAR-10 is uint8 (N, 32, 32, 3)")
    signature = f"{_files_signature([path], path.parent)}-{config.split}"
    return ArraySource(images, labels, CIFAR10_CLASSES, signature)


SOURCES: dict[type, Callable[[Any], ImageSource]] = {
    EmbeddedData: embedded_source,
    FolderData: FolderSource,
    ParquetData: ParquetSource,
    TorchvisionData: TorchvisionSource,
    CIFAR10Data: cifar10_source,
}


def open_source(config: AnyData) -> ImageSource:
    """The source behind a config. DataError if it is missing, empty, or has more classes than declared."""
    source = SOURCES[type(config)](config)
    if source.num_images == 0:
        raise DataError(
            f"data.path {getattr(config, 'path', '')} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
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
    path = _existing(Path(text))
    if path.suffix == ".npz" or (path / "cifar-10-batches-py").is_dir():
        return {"kind": "cifar10", "path": path}
    if path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None)):
        return {"kind": "parquet", "path": path}
    if path.is_dir():
        return {"kind": "folder", "path": path}
    raise DataError(f"{text} is neither a folder, Parquet, nor an .npz; see: rememe data prepare --help")


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
        return cls(root, **options)
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision finds no {name} in {root} ({error}); data.path is the root it was downloaded to"
        ) from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"data.path {path} does not exist")
    return path


def _files_signature(files: list[Path], root: Path) -> str:
    stats = [(str(file.relative_to(root)), file.stat()) for file in files]
    return content_hash([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

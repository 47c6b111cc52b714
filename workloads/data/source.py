"""What every source of images is: a finite, ordered sequence of items with classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads.data.found import LeftOut
from workloads.data.pictures import PictureContent
from workloads.errors import DataError


class Item(NamedTuple):
    """One image, not yet read."""

    name: str
    label: int
    read: Callable[[], PictureContent]
    """BadPictureError if it cannot be."""


class ImageSource(ABC):
    """A finite, ordered sequence of images with classes."""

    class_names: tuple[str, ...]
    num_images: int
    remarks: tuple[str, ...] = ()
    """For people: how the source was understood."""

    left_out: tuple[LeftOut, ...] = ()
    """What lies there and is not read."""

    latent_shape: tuple[int, int, int] | None = None
    """Of a source whose items are latents already: channels, height, width."""

    @abstractmethod
    def items(self, start: int) -> Iterator[Item]:
        """All items from index `start` on, in an order that never changes."""

    @abstractmethod
    def signature(self) -> str:
        """Changes when the source does; cheap, so it looks at names, sizes and times rather than at pixels."""


class OrderedItems:
    """The items of a source, gone through once: to begin anew in the midst of a large row group takes reading it."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self._items: Iterator[Item] = iter(())
        self._next: int | None = None

    def take(self, start: int, count: int) -> Iterator[Item]:
        """So many from one on; all of them are to be taken before the next ones are."""
        if start != self._next:
            self._items = self.source.items(start)
        self._next = start + count
        return islice(self._items, count)


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
            yield Item(str(index), int(self._labels[index]), lambda pixels=pixels: pixels)  # type: ignore[misc]

    def signature(self) -> str:
        return self._signature


def existing(path: Path) -> Path:
    """The path, if there is something. DataError if not."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"data.path {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"data.path {str(path)[:200]!r} cannot be read ({getattr(error, 'strerror', error)})") from None
    return path

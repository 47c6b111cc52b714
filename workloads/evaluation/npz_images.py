"""Reference images in an .npz, as ADM's evaluation batches have them: read one after the other, never all at once."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from workloads.errors import ConfigError

ARRAY = "arr_0"

# Axes: N images, H height, W width, C channels.


def has_images(path: Path) -> bool:
    """Whether the file is an .npz with images."""
    return path.suffix == ".npz" and zipfile.is_zipfile(path) and f"{ARRAY}.npy" in zipfile.ZipFile(path).namelist()


class NpzImages(Dataset[Tensor]):
    """The array arr_0, uint8 (N, H, W, 3), as a data set of uint8 (3, H, W). ConfigError if it holds something else.

    Quick where indices rise; the file is begun anew where they fall.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as stream:
            self.shape_NHWC, is_fortran, dtype = _header(stream)
        if dtype != np.uint8 or is_fortran or len(self.shape_NHWC) != 4 or self.shape_NHWC[3] != 3:
            raise ConfigError(
                f"evaluation.reference_statistics {path} holds {ARRAY} of {dtype}, {self.shape_NHWC}; images are uint8 "
                "(N, height, width, 3)"
            )
        self._stream: IO[bytes] | None = None
        self._place = 0

    def __len__(self) -> int:
        return self.shape_NHWC[0]

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._stream is None or index < self._place:
            self._stream, self._place = self._opened(), 0
            _header(self._stream)
        num_bytes = int(np.prod(self.shape_NHWC[1:]))
        while self._place <= index:
            pixels = self._stream.read(num_bytes)
            self._place += 1
        if len(pixels) < num_bytes:
            raise ConfigError(f"evaluation.reference_statistics {self.path} ends within {ARRAY}; the file is damaged")
        image_HWC = np.frombuffer(pixels, np.uint8).reshape(self.shape_NHWC[1:])
        return torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]

    def _opened(self) -> IO[bytes]:
        return zipfile.ZipFile(self.path).open(f"{ARRAY}.npy")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype] = read(stream)
    return found

"""Generated images on disk: one .npy per batch, whole or absent, and a data set over them."""

import errno
import hashlib
import io
import logging
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import DataError
from workloads.evaluation.blocks import ImageSet
from workloads.evaluation.features import to_rgb
from workloads.evaluation.generate import batch_indices
from workloads.files import clear_storage_errors, new_file

logger = logging.getLogger(__name__)

# Axes: B batch, C channels, H height, W width.

DIGEST_BYTES = hashlib.sha256().digest_size

_WHOLE: set[tuple[Path, int, int]] = set()
"""Files that this process has found whole, as they were then; a score asks for each several times."""


class SampleStore:
    """batch_00000.npy, batch_00001.npy, ...: uint8 (B, C, H, W), the batches of a protocol.

    Behind the array, where NumPy does not look, lies the SHA-256 of all before it; earlier versions wrote none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, batch_index: int) -> Path:
        """Where a batch lies once it is written."""
        return self.path / f"batch_{batch_index:05d}.npy"

    def write(self, batch_index: int, images_BCHW: Tensor | np.ndarray) -> None:
        """Store a batch in one step, so that a reader finds all of it or nothing. StorageError if the disk is full."""
        array = np.asarray(images_BCHW)
        if array.dtype != np.uint8 or array.ndim != 4:
            raise DataError(f"samples are {array.dtype} of shape {array.shape}; they must be uint8 (B, C, H, W)")
        buffer = io.BytesIO()  # writing an array straight to a file hides why it failed
        np.save(buffer, array, allow_pickle=False)
        buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
        with new_file(self.file(batch_index)) as scratch:
            scratch.write_bytes(buffer.getbuffer())

    def read(self, batch_index: int) -> np.ndarray | None:
        """A batch mapped into memory: uint8 (B, C, H, W). None if it is absent or damaged."""
        file = self.file(batch_index)
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            return np.asarray(array) if _is_whole(file, array) else None
        # What NumPy raises where no shape stands.
        except (ValueError, TypeError, KeyError, OverflowError, SyntaxError, TokenError, EOFError):
            return None
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL}:
                raise
            return None

    def damaged(self) -> list[Path]:
        """Batches that are not as they were written."""
        indices = [int(file.stem.removeprefix("batch_")) for file in sorted(self.path.glob("batch_[0-9]*.npy"))]
        return [self.file(index) for index in indices if self.read(index) is None]

    def missing(self, protocol: ProtocolConfig) -> list[int]:
        """Batches of the protocol that must be generated (again): absent, damaged, or of another size."""
        absent, shape_CHW = [], None
        for batch_index, indices in enumerate(batch_indices(protocol)):
            array = self.read(batch_index)
            if array is None and self.file(batch_index).exists():
                logger.warning("%s is damaged; these samples are drawn again", self.file(batch_index))
            if array is None or len(array) != len(indices):
                absent.append(batch_index)
            elif shape_CHW is None:
                shape_CHW = array.shape[1:]
            elif array.shape[1:] != shape_CHW:
                absent.append(batch_index)
        return absent

    def images(self, protocol: ProtocolConfig) -> "SampleImages":
        """The protocol's images, in order. Raises DataError naming the first batch that is missing."""
        return SampleImages(self, protocol)


def _is_whole(file: Path, array: np.memmap) -> bool:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in {1, 3}:
        return False
    stat = file.stat()
    stamp = (file.absolute(), stat.st_mtime_ns, stat.st_size)
    if stamp in _WHOLE:
        return True
    content = np.memmap(file, np.uint8, "r")
    num_behind = len(content) - array.offset - array.nbytes
    if num_behind not in {0, DIGEST_BYTES}:
        return False
    before, digest = content[: len(content) - num_behind], content[len(content) - num_behind :].tobytes()
    if digest and hashlib.sha256(before.data).digest() != digest:
        return False
    _WHOLE.add(stamp)
    return True


class SampleImages(Dataset[Tensor]):
    """The first num_samples images of a store as uint8 (3, H, W); grey is repeated."""

    def __init__(self, store: SampleStore, protocol: ProtocolConfig) -> None:
        absent = store.missing(protocol)
        if absent:
            raise DataError(
                f"{store.path} lacks {len(absent)} of {len(batch_indices(protocol))} batches of samples, the first is "
                f"{store.file(absent[0]).name}; generate them first"
            )
        self.batches: list[np.ndarray] = []
        for batch_index in range(len(batch_indices(protocol))):
            array = store.read(batch_index)
            assert array is not None
            self.batches.append(array)
        self.num_images, self.batch_size = protocol.num_samples, protocol.batch_size

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        image_CHW = self.batches[index // self.batch_size][index % self.batch_size]
        # A copy: torch.from_numpy warns of mapped arrays, which cannot be written to.
        return to_rgb(torch.tensor(image_CHW)[None])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]


def pictures_beyond(folder: Path, num_images: int) -> list[str]:
    """Names of PNG files there that write_images would leave beside so many of its own."""
    own = {_picture_name(index) for index in range(num_images)}
    return sorted(file.name for file in folder.glob("*.png") if file.name not in own)


def _picture_name(index: int) -> str:
    return f"{index:06d}.png"


def write_images(images: ImageSet, folder: Path) -> None:
    """Each image as 000000.png, 000001.png, ...: what other FID tools read. StorageError if the disk is full."""
    with clear_storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(images)):
            pixels_HWC = images[index].permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels_HWC).save(folder / _picture_name(index))

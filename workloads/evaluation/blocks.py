"""Features of a set of images, block by block on disk: a measurement that is killed goes on, and none fills the memory.

A block is found by the content of its images, so what is found is what would be computed. Batches have one size, the
last being filled up, and each is computed by one thread: no bit of a feature depends on how many there are.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workloads.evaluation.extractors import Extractor
from workloads.files import clear_storage_errors, new_file
from workloads.sealed import CHECKSUM, content_hash
from workloads.threads import one_thread

logger = logging.getLogger(__name__)

# Axes: N images, n images of a block, B batch, C channels, H height, W width, D features.

FEATURE_BATCH = 64
"""Images through the feature network at once: part of the protocol, because it changes the last bits."""

BLOCK_IMAGES = 512
"""Images whose features are computed again if the process is killed; as many are in memory."""

MAX_WORKERS = 8
"""Batches computed at once on a CPU; each takes some 0.5 GB in Inception."""


class ImageSet(Protocol):
    """uint8 images (3, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def __getitems__(self, indices: list[int]) -> list[Tensor]: ...


class Features(Sequence[Tensor]):
    """The features of one layer: float32 (n, D), a block each, read from disk when asked for."""

    def __init__(self, files: Sequence[Path], layer: str) -> None:
        self.files, self.layer = files, layer

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "Features": ...
    def __getitem__(self, index: int | slice) -> "Tensor | Features":
        if isinstance(index, slice):
            return Features(self.files[index], self.layer)
        with safe_open(self.files[index], framework="pt") as opened:
            found: Tensor = opened.get_tensor(self.layer)
        return found


def first(blocks: Sequence[Tensor], number: int) -> Tensor:
    """Features of the first images: (number, D), or of all if those are fewer. Reads no more than it takes."""
    taken: list[Tensor] = []
    while (missing := number - sum(map(len, taken))) > 0 and len(taken) < len(blocks):
        taken.append(blocks[len(taken)][:missing])
    return torch.cat(taken)


@contextmanager
def extracted(
    images: ImageSet,
    extractor: Extractor,
    folder: Path,
    *,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Features]]:
    """Features of every image in order, by layer. They are removed when what the block makes of them is made.

    What an earlier call was killed over is in `folder` still, and is not computed again. advance(n) follows each n
    images. Raises StorageError if the disk is full.
    """
    files: list[Path] = []
    with ExitStack() as stack:
        pool = stack.enter_context(_on_device(extractor, device))
        for start in range(0, len(images), BLOCK_IMAGES):
            indices = list(range(start, min(start + BLOCK_IMAGES, len(images))))
            block_nCHW = torch.stack(images.__getitems__(indices))
            file = folder / f"{extractor.name}-{_key(block_nCHW, extractor)}.safetensors"
            if read_arrays(file) is None:
                write_arrays(file, _features(block_nCHW, extractor, pool, device))
            else:
                file.touch()  # in use: what nobody has touched for a day is taken for given up
            files.append(file)
            if advance is not None:
                advance(len(indices))
    yield {layer: Features(files, layer) for layer in extractor.layers}
    for file in files:
        file.unlink(missing_ok=True)


@contextmanager
def _on_device(extractor: Extractor, device: str) -> Iterator[Executor]:
    """The network there, and who calls it: one thread for a GPU, which has its own order of things."""
    on_gpu = torch.device(device).type == "cuda"
    extractor.module.to(device)
    workers = 1 if on_gpu else min(torch.get_num_threads(), MAX_WORKERS)
    with ExitStack() as stack:
        if on_gpu:
            stack.enter_context(torch.cuda.device(device))
        # Not TF32: rounding features to ten bits moves a distance as much as a better model does.
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        stack.enter_context(one_thread())
        yield stack.enter_context(ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)))


def _features(block_nCHW: Tensor, extractor: Extractor, pool: Executor, device: str) -> dict[str, np.ndarray]:
    def compute(batch_BCHW: Tensor) -> list[Tensor]:
        missing = FEATURE_BATCH - len(batch_BCHW)
        full_BCHW = torch.cat([batch_BCHW, batch_BCHW.new_zeros(missing, *batch_BCHW.shape[1:])])
        with torch.no_grad():  # of this thread
            found = extractor.module(full_BCHW.to(device))
        return [features_BD[: len(batch_BCHW)].float().cpu() for features_BD in found]

    by_layer = zip(*pool.map(compute, torch.split(block_nCHW, FEATURE_BATCH)), strict=True)
    return {layer: torch.cat(parts).numpy() for layer, parts in zip(extractor.layers, by_layer, strict=True)}


def _key(block_nCHW: Tensor, extractor: Extractor) -> str:
    how = {"extractor": extractor.identity, "layers": extractor.layers, "batch": FEATURE_BATCH}
    pixels = hashlib.sha256(block_nCHW.contiguous().numpy().data).hexdigest()
    return content_hash(how | {"shape": list(block_nCHW.shape), "images": pixels})[:32]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """In one step, with a checksum. Raises StorageError if the disk is full."""
    with clear_storage_errors(path), new_file(path) as scratch:
        safetensors.numpy.save_file(dict(arrays), scratch, {CHECKSUM: _digest(arrays)})


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """None if there is no whole file; a damaged one is named, and computed again."""
    try:
        with safe_open(path, framework="np") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            checksum = (opened.metadata() or {}).get(CHECKSUM)
        # Earlier versions wrote no checksum.
        is_whole = checksum == _digest(found) if checksum else all(map(_is_finite, found.values()))
    except FileNotFoundError:
        return None
    except SafetensorError:
        is_whole = False
    if not is_whole:
        logger.warning("%s is damaged and is computed again", path)
    return found if is_whole else None


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

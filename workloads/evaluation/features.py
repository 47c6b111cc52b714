"""Features of a set of images, and the cached statistics of a reference set, through torch-fidelity."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.utils import get_featuresdict_from_dataset

from workloads.config.base import content_hash
from workloads.data.prepared import PreparedDataset
from workloads.errors import DataError
from workloads.evaluation.extractors import Extractor
from workloads.files import clear_storage_errors, new_file
from workloads.locks import locked
from workloads.sealed import CHECKSUM

logger = logging.getLogger(__name__)

# Axes: N images, B batch, C channels, H height, W width, D features.

FEATURE_BATCH = 64
"""Images through the feature network at once: part of the protocol, because it changes the last bits."""


class ImageSet(Protocol):
    """What torch-fidelity reads: a torch Dataset of uint8 (3, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def __getitems__(self, indices: list[int]) -> list[Tensor]: ...


class ReferenceImages(Dataset[Tensor]):
    """The images of a prepared data set as uint8 (3, H, W); grey is repeated. DataError if it holds latents."""

    def __init__(self, reference: PreparedDataset) -> None:
        if reference.manifest.kind == "latents":
            raise DataError(
                f"{reference.path} holds latents, but a score compares images: prepare the images the latents were "
                "made from (rememe data prepare, without a VAE) and give that directory as the reference"
            )
        self.reference = reference

    def __len__(self) -> int:
        return self.reference.num_images

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(to_rgb(torch.from_numpy(self.reference.images(np.array(indices)))))


class TensorImages(Dataset[Tensor]):
    """uint8 images (N, C, H, W) in memory as a data set of uint8 (3, H, W)."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self.images_NCHW = images_NCHW

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(to_rgb(self.images_NCHW[indices]))


class _CountedImages(Dataset[Tensor]):
    """Passes images through and counts them."""

    def __init__(self, images: ImageSet, advance: Callable[[int], None]) -> None:
        self.images, self.advance = images, advance

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.advance(len(indices))
        return self.images.__getitems__(indices)


def to_rgb(images_BCHW: Tensor) -> Tensor:
    """(B, 3, H, W), grey repeated."""
    assert images_BCHW.dtype == torch.uint8
    assert images_BCHW.ndim == 4
    return images_BCHW.expand(-1, 3, -1, -1)


def extract_features(
    images: ImageSet, extractor: Extractor, *, device: str = "cpu", advance: Callable[[int], None] | None = None
) -> Tensor:
    """Features of every image in order: float32 (N, D) on the CPU. advance(n) follows each n images read."""
    return extract_all(images, extractor, device=device, advance=advance)[extractor.layer]


def extract_all(
    images: ImageSet, extractor: Extractor, *, device: str = "cpu", advance: Callable[[int], None] | None = None
) -> dict[str, Tensor]:
    """Features of every image in order, on the CPU, by torch-fidelity's names of them."""
    on_gpu = torch.device(device).type == "cuda"
    extractor.module.to(device)
    with contextlib.ExitStack() as stack:
        if on_gpu:
            stack.enter_context(torch.cuda.device(device))
        # Not TF32: rounding features to ten bits moves a distance as much as a better model does.
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        found: dict[str, Tensor] = get_featuresdict_from_dataset(
            _CountedImages(images, advance or (lambda _: None)),
            extractor.module,
            batch_size=FEATURE_BATCH,
            cuda=on_gpu,
            save_cpu_ram=True,  # no worker processes: reading is a copy from mapped memory
            verbose=False,
        )
    return found


class Statistics(NamedTuple):
    """Mean float32 (D,) and covariance float64 (D, D) of features."""

    mu: np.ndarray
    sigma: np.ndarray


def feature_statistics(features_ND: Tensor) -> Statistics:
    """torch-fidelity's mean and covariance."""
    return Statistics(**fid_features_to_statistics(features_ND))


def statistics_path(reference: PreparedDataset, extractor: Extractor, cache_dir: Path) -> Path:
    """Where the reference's statistics are kept: by content, so the same data anywhere finds the same file."""
    key = content_hash({"reference": reference.fingerprint, "extractor": extractor.identity, "batch": FEATURE_BATCH})
    return cache_dir / "statistics" / f"{extractor.name}-{key[:32]}.safetensors"


def reference_statistics(
    reference: PreparedDataset,
    extractor: Extractor,
    *,
    cache_dir: Path,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> Statistics:
    """Statistics of the reference images, computed once per cache_dir even by concurrent processes.

    Raises DataError for latents and StorageError if the cache cannot be written.
    """
    images = ReferenceImages(reference)

    def compute() -> dict[str, np.ndarray]:
        return feature_statistics(extract_features(images, extractor, device=device, advance=advance))._asdict()

    return Statistics(**_computed_once(statistics_path(reference, extractor, cache_dir), compute))


def reference_features(
    reference: PreparedDataset,
    extractor: Extractor,
    num_images: int,
    *,
    seed: int,
    cache_dir: Path,
    device: str = "cpu",
) -> Tensor:
    """Features of num_images reference images drawn by the seed (or of all): float32 (n, D), computed once.

    Raises DataError for latents and StorageError if the cache cannot be written.
    """
    images = ReferenceImages(reference)
    num_images = min(len(images), num_images)
    whole = statistics_path(reference, extractor, cache_dir)
    drawn = np.sort(np.random.default_rng(seed).choice(len(images), num_images, replace=False)).tolist()
    path = cache_dir / "features" / f"{whole.stem}-{num_images}-seed{seed}.safetensors"

    def compute() -> dict[str, np.ndarray]:
        return {"features": extract_features(Subset(images, drawn), extractor, device=device).numpy()}

    return torch.from_numpy(_computed_once(path, compute)["features"])


def _computed_once(path: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the file holds; if there is no whole file, what is computed, which is then kept there.

    By one process for all that ask; where a file system has no locks, by everyone.
    """
    cached = _read(path)
    if cached is not None:
        return cached
    with clear_storage_errors(path), locked(path.with_name(f".{path.name}.lock"), if_supported=True):
        cached = _read(path)  # another process may have written it meanwhile
        if cached is None:
            cached = compute()
            with new_file(path) as scratch:
                safetensors.numpy.save_file(cached, scratch, {CHECKSUM: _digest(cached)})
    return cached


def _read(path: Path) -> dict[str, np.ndarray] | None:
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

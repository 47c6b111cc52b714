"""Sets of images that are compared, and the cached statistics of a reference set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from workloads.data.prepared import PreparedDataset
from workloads.errors import DataError
from workloads.evaluation.blocks import FEATURE_BATCH, extracted, read_arrays, write_arrays
from workloads.evaluation.extractors import Extractor
from workloads.evaluation.moments import Statistics, feature_statistics
from workloads.files import clear_storage_errors
from workloads.locks import locked
from workloads.places import CacheDir
from workloads.sealed import content_hash

# Axes: N images, n of them, B batch, C channels, H height, W width, D features.


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


def to_rgb(images_BCHW: Tensor) -> Tensor:
    """(B, 3, H, W), grey repeated."""
    assert images_BCHW.dtype == torch.uint8
    assert images_BCHW.ndim == 4
    return images_BCHW.expand(-1, 3, -1, -1)


def statistics_path(fingerprint: str, extractor: Extractor, cache_dir: Path) -> Path:
    """Where the reference's statistics are kept: by content, so the same data anywhere finds the same file."""
    key = content_hash({"reference": fingerprint, "extractor": extractor.identity, "batch": FEATURE_BATCH})
    return CacheDir(cache_dir).statistics / f"{extractor.name}-{key[:32]}.safetensors"


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
        with extracted(images, extractor, CacheDir(cache_dir).blocks, device=device, advance=advance) as found:
            return feature_statistics(found[extractor.layer])._asdict()

    return Statistics(**_computed_once(statistics_path(reference.fingerprint, extractor, cache_dir), compute))


def drawn_features(
    images: Dataset[Tensor],
    fingerprint: str,
    extractor: Extractor,
    num_images: int,
    *,
    seed: int,
    cache_dir: Path,
    device: str = "cpu",
) -> Tensor:
    """Features of num_images reference images drawn by the seed (or of all): float32 (n, D), computed once.

    fingerprint: of the images' content. Raises StorageError if the cache cannot be written.
    """
    number = len(images)  # type: ignore[arg-type]  # torch's Dataset declares no length
    num_images = min(number, num_images)
    whole = statistics_path(fingerprint, extractor, cache_dir)
    drawn = np.sort(np.random.default_rng(seed).choice(number, num_images, replace=False)).tolist()
    path = CacheDir(cache_dir).features / f"{whole.stem}-{num_images}-seed{seed}.safetensors"

    def compute() -> dict[str, np.ndarray]:
        with extracted(Subset(images, drawn), extractor, CacheDir(cache_dir).blocks, device=device) as found:
            return {"features": torch.cat(list(found[extractor.layer])).numpy()}

    return torch.from_numpy(_computed_once(path, compute)["features"])


def _computed_once(path: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the file holds; if there is no whole file, what is computed, which is then kept there.

    By one process for all that ask; where a file system has no locks, by everyone.
    """
    cached = read_arrays(path)
    if cached is not None:
        return cached
    with clear_storage_errors(path), locked(path.with_name(f".{path.name}.lock"), if_supported=True):
        cached = read_arrays(path)  # another process may have written it meanwhile
        if cached is None:
            cached = compute()
            write_arrays(path, cached)
    return cached

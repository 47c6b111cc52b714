"""Prepared data: Arrow shards mapped into memory, described by a manifest with checksums."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from workloads.config.base import GrownConfig, StrictConfig
from workloads.config.data import AnyData
from workloads.config.job import DataSpec
from workloads.errors import DataError
from workloads.files import sha256_file
from workloads.sealed import load_json
from workloads.seeding import derive_seed

MANIFEST = "manifest.json"
LATENT_STD_RANGE = (0.5, 2.0)
"""Latents whose standard deviation lies outside were scaled wrongly; a diffusion expects about 1."""

POSTERIOR_PARTS = 4
"""Mean and log-variance of a latent, and of the mirror image's."""

# Axes: B batch, C channels, H height, W width.


class Shard(StrictConfig):
    """One file of consecutive images."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name within the directory."""

    num_images: int = Field(ge=1)
    sha256: str


class LatentInfo(GrownConfig):
    """How latents were made, and so how they become images again."""

    later = frozenset({"posterior"})

    vae: Path
    """Directory of the diffusers AutoencoderKL or VQModel."""

    vae_sha256: str
    """Of its weights."""

    scaling_factor: float
    """latent = (encoded - shift_factor) * scaling_factor."""

    shift_factor: float = 0.0
    downsampling: int
    """Pixels per latent cell along one side."""

    mean: float
    """Of the scaled latents; about 0."""

    std: float
    """Of the scaled latents; about 1."""

    posterior: bool = False
    """Whether a row has, of the scaled latent, the posterior's mean and log-variance, and both again of the mirror
    image's: 4 C channels, of which training draws a latent anew in each epoch."""

    def unscale(self, latents_BCHW: Any) -> Any:
        """What the VAE's decoder takes."""
        return latents_BCHW / self.scaling_factor + self.shift_factor

    def check_scale(self) -> None:
        """Raise DataError if the standard deviation is far from 1: what most often ruins a latent diffusion."""
        low, high = LATENT_STD_RANGE
        if not low <= self.std <= high:
            raise DataError(
                f"the latents have standard deviation {self.std:.3g} where a diffusion expects about 1: scaling_factor "
                f"{self.scaling_factor:g} is wrong for this data and VAE; {self.scaling_factor / self.std:.4g} would "
                "be right; set it in the VAE's config.json and prepare again"
            )


class Manifest(StrictConfig):
    """What manifest.json holds; written last, so a directory with one is whole."""

    format_version: int = 1
    kind: Literal["images", "latents"] = "images"
    num_images: int = Field(ge=1)
    shape: tuple[int, int, int]
    """Channels, height, width."""

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    source: str
    """For people: where the images came from."""

    bad: tuple[str, ...] = ()
    """Images that did not decode and were left out."""

    fingerprint: str
    """SHA-256 of all images and labels in order; independent of path and shard size."""

    latent: LatentInfo | None = None

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Of what is stored for each image."""
        channels, height, width = self.shape
        has_posterior = self.latent is not None and self.latent.posterior
        return (channels * POSTERIOR_PARTS if has_posterior else channels, height, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored value: uint8 pixels or float16 latents."""
        return np.dtype(np.uint8 if self.kind == "images" else np.float16)


class Split(NamedTuple):
    """Indices of images, both rising."""

    training: np.ndarray
    held_out: np.ndarray


class PreparedDataset:
    """Images (or latents) and labels by index, read from the page cache without copies until a batch is gathered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        if self.manifest.latent is not None:
            self.manifest.latent.check_scale()
        self._images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for shard in self.manifest.shards:
            images, shard_labels = open_shard(path / shard.file, self.manifest.row_shape, self.manifest.dtype)
            if len(images) != shard.num_images:
                raise DataError(f"{path / shard.file} holds {len(images)} images, its manifest says {shard.num_images}")
            self._images.append(images)
            labels.append(shard_labels)
        self._labels = np.concatenate(labels)
        self._starts = np.cumsum([0] + [len(images) for images in self._images])

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def num_images(self) -> int:
        return self.manifest.num_images

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.manifest.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 images, or float32 latents scaled to a standard deviation of about 1: (B, C, H, W).

        Of a posterior, its mean.
        """
        rows = self._rows(indices)
        return rows if self.manifest.kind == "images" else rows[:, : self.shape[0]].astype(np.float32)

    @property
    def has_posterior(self) -> bool:
        """Whether it has distributions of latents."""
        return self.manifest.latent is not None and self.manifest.latent.posterior

    def posteriors(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each image's latent, or of its mirror image's: float32 (B, C, H, W)."""
        batch, _, height, width = (rows := self._rows(indices)).shape
        parts = rows.reshape(batch, 2, 2, self.shape[0], height, width)[np.arange(batch), mirrored.astype(int)]
        return parts[:, 0].astype(np.float32), np.exp(parts[:, 1].astype(np.float32) / 2)

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        batch = np.empty((len(indices), *self.manifest.row_shape), self.manifest.dtype)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            batch[here] = self._images[shard][indices[here] - self._starts[shard]]
        return batch

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """int64 class indices: (B,)."""
        labels_B: np.ndarray = self._labels[indices]
        return labels_B

    def split(self, num_held_out: int) -> Split:
        """Which images are trained on and which are not: a function of their number and the data set's size alone.

        A larger held-out part contains the smaller ones.
        """
        order = np.random.default_rng(derive_seed("held out", self.num_images)).permutation(self.num_images)
        return Split(np.sort(order[num_held_out:]), np.sort(order[:num_held_out]))

    def spec(self, config: AnyData) -> DataSpec:
        """What a job must know about this data; the number of classes only if the network is told the class.

        Raises DataError if nothing is left to train on.
        """
        if config.held_out >= self.num_images:
            raise DataError(
                f"data.held_out is {config.held_out}, but the data has {self.num_images} images; hold out fewer"
            )
        return DataSpec(
            fingerprint=self.fingerprint,
            channels=self.shape[0],
            image_size=self.shape[2],
            num_classes=self.num_classes if config.class_conditional else None,
            flip=config.flip,
            held_out=config.held_out,
        )

    def verify(self) -> None:
        """Check every shard's SHA-256. Raises DataError naming the first that differs."""
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            digests = pool.map(sha256_file, [self.path / shard.file for shard in self.manifest.shards])
        for shard, digest in zip(self.manifest.shards, digests, strict=True):
            if digest != shard.sha256:
                raise DataError(
                    f"{self.path / shard.file} does not match its checksum: it was damaged since it was prepared; "
                    f"remove {self.path} and prepare again"
                )

    def verify_once(self) -> None:
        """The same, but not again in this process unless a file has been written since."""
        stats = [(self.path / shard.file).stat() for shard in self.manifest.shards]
        stamp = (self.path, self.manifest.shards, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))
        if stamp not in _VERIFIED:
            self.verify()
            _VERIFIED.add(stamp)


_VERIFIED: set[tuple[object, ...]] = set()
"""What this process has found whole; a process trains on few sets of data."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of a prepared directory. DataError if there is none or it is damaged."""
    file = path / MANIFEST
    if not path.exists():
        raise DataError(f"{path} does not exist; prepared data is a directory that rememe data prepare wrote")
    if not file.is_file():
        raise DataError(f"{path} holds no prepared data ({MANIFEST} is missing); make it with: rememe data prepare")
    try:
        return Manifest.model_validate(load_json(file))
    except ValueError as error:
        raise DataError(f"{file} is damaged: {str(error).splitlines()[0]}; prepare again") from None


def open_shard(file: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images as a view of the mapped file (n, C, H, W), and labels (n,). DataError if it is missing or cut short."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        values = np.frombuffer(batch.column("image").buffers()[1], dtype)
        # Arrow pads its buffers.
        images = values[: batch.num_rows * int(np.prod(shape))].reshape(batch.num_rows, *shape)
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"{file} is missing or damaged ({error}); remove {file.parent} and prepare again") from None
    return images, batch.column("label").to_numpy()


def rows_in_order(shards: list[tuple[np.ndarray, np.ndarray]], rows: int = 4096) -> Iterator[np.ndarray]:
    """Contiguous blocks of images, shard after shard."""
    for images, _ in shards:
        for start in range(0, len(images), rows):
            yield np.ascontiguousarray(images[start : start + rows])

"""Images to latents of a first stage, scaled to the unit variance a diffusion expects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workloads.data.prepared import POSTERIOR_PARTS, LatentInfo
from workloads.errors import DataError
from workloads.files import sha256_file

BATCH_SIZE = 32

FIRST_STAGES = ("AutoencoderKL", "VQModel")
"""Of diffusers. The latents of a VQModel are what its encoder yields; its decoder quantises them."""

# Axes: B batch, C channels, H height, W width.


def load_first_stage(path: Path) -> Any:
    """The autoencoder of a local diffusers directory, in evaluation mode. DataError if there is none."""
    import diffusers

    try:
        kind = json.loads((path / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise DataError(f"--vae {path} is not the directory of a diffusers autoencoder (no config.json)") from None
    if kind not in FIRST_STAGES:
        raise DataError(f"--vae {path} holds a {kind}; it must be one of {', '.join(FIRST_STAGES)}")
    try:
        return getattr(diffusers, kind).from_pretrained(path, local_files_only=True, low_cpu_mem_usage=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"--vae {path} cannot be loaded: {str(error).splitlines()[0]}") from None


def first_stage_weights(path: Path) -> Path:
    """The file with its weights, which is what latents depend on. DataError if there is none."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"--vae {path} has no weights as safetensors; save it with save_pretrained")
    return files[0]


class VaeScale(NamedTuple):
    """What the numbers of a VAE become before a diffusion sees them."""

    path: Path
    latent_channels: int
    scaling_factor: float
    shift_factor: float

    @classmethod
    def of(cls, path: Path) -> "VaeScale":
        """As a diffusers AutoencoderKL's config.json says. DataError if there is none."""
        file = path / "config.json"
        if not file.is_file():
            raise DataError(f"--vae {path} is not a diffusers AutoencoderKL directory (config.json is missing)")
        try:
            said = json.loads(file.read_text())
            # What diffusers takes where a config leaves them out.
            numbers = (said.get("latent_channels", 4), said.get("scaling_factor", 0.18215), said.get("shift_factor"))
            return cls(path, int(numbers[0]), float(numbers[1]), float(numbers[2] or 0.0))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is no description of a VAE ({error}); get it again") from None

    def scaled(self, encoded: np.ndarray) -> np.ndarray:
        """(encoded - shift_factor) * scaling_factor."""
        return (encoded - self.shift_factor) * self.scaling_factor


class LatentEncoder:
    """A first stage from a local directory, and what is kept of its latents."""

    def __init__(self, path: Path, *, posterior: bool = False) -> None:
        """posterior: keep the distribution of each image's latent, and of its mirror image's, instead of the mode."""
        self._vae = load_first_stage(path)
        self._is_quantised = type(self._vae).__name__ == "VQModel"
        if posterior and self._is_quantised:
            raise DataError(f"--vae {path} is a VQModel, whose latents have no distribution; leave --posterior out")
        self._path = path
        self.posterior = posterior
        self.weights_sha256 = sha256_file(first_stage_weights(path))
        self.scaling_factor = float(self._vae.config.scaling_factor)
        self.shift_factor = float(self._vae.config.get("shift_factor") or 0.0)
        self._downsampling = 2 ** (len(self._vae.config.block_out_channels) - 1)

    def encode(self, images_BCHW: np.ndarray) -> np.ndarray:
        """(latent - shift_factor) * scaling_factor as float16, the rows of LatentInfo.posterior; pixels are uint8."""
        import torch

        with torch.inference_mode():
            parts = [
                self._encode(torch.from_numpy(images_BCHW[start : start + BATCH_SIZE].copy()).float() / 127.5 - 1)
                for start in range(0, len(images_BCHW), BATCH_SIZE)
            ]
            return torch.cat(parts).half().numpy()

    def _encode(self, pixels_BCHW: Any) -> Any:
        import torch

        encoded = self._vae.encode(pixels_BCHW)
        if self._is_quantised:
            return self._scaled(encoded.latents)
        if not self.posterior:
            return self._scaled(encoded.latent_dist.mode())
        both = (encoded.latent_dist, self._vae.encode(pixels_BCHW.flip(-1)).latent_dist)
        log_scale = 2 * np.log(abs(self.scaling_factor))
        return torch.cat([part for one in both for part in (self._scaled(one.mean), one.logvar + log_scale)], dim=1)

    def _scaled(self, latents_BCHW: Any) -> Any:
        return (latents_BCHW - self.shift_factor) * self.scaling_factor

    def info(self, blocks: Iterator[np.ndarray]) -> LatentInfo:
        """What the manifest says about these rows, with the mean and standard deviation of their (mean) latents."""
        count, total, squares = 0, 0.0, 0.0
        for block in blocks:
            num_channels = block.shape[1] // (POSTERIOR_PARTS if self.posterior else 1)
            values = block[:, :num_channels].astype(np.float64)
            count, total, squares = count + values.size, total + values.sum(), squares + (values**2).sum()
        mean = total / count
        return LatentInfo(
            vae=self._path.absolute(),
            vae_sha256=self.weights_sha256,
            scaling_factor=self.scaling_factor,
            shift_factor=self.shift_factor,
            downsampling=self._downsampling,
            mean=mean,
            # Rounding may take the difference below zero.
            std=float(np.sqrt(max(0.0, squares / count - mean**2))),
            posterior=self.posterior,
        )

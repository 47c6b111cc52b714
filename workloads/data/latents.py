"""Images to VAE latents, scaled to the unit variance a diffusion expects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads.data.prepared import LatentInfo
from workloads.errors import DataError
from workloads.files import sha256_file

BATCH_SIZE = 32


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
    """A diffusers AutoencoderKL from a local directory."""

    def __init__(self, path: Path) -> None:
        from diffusers import AutoencoderKL

        scale = VaeScale.of(path)
        try:
            self._vae = AutoencoderKL.from_pretrained(path, local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"--vae {path} cannot be loaded: {str(error).splitlines()[0]}") from None
        self._path = path
        self.weights_sha256 = sha256_file(next(iter(sorted(path.glob("*.safetensors")))))
        self.scaling_factor, self.shift_factor = scale.scaling_factor, scale.shift_factor
        self._downsampling = 2 ** (len(self._vae.config.block_out_channels) - 1)

    def encode(self, images_BCHW: np.ndarray) -> np.ndarray:
        """(mean of the posterior - shift_factor) * scaling_factor as float16; pixels are uint8."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(images_BCHW), BATCH_SIZE):
                pixels = torch.from_numpy(images_BCHW[start : start + BATCH_SIZE].copy()).float() / 127.5 - 1
                mean = self._vae.encode(pixels).latent_dist.mode()
                parts.append(((mean - self.shift_factor) * self.scaling_factor).half().numpy())
        return np.concatenate(parts)

    def info(self, blocks: Iterator[np.ndarray]) -> LatentInfo:
        """What the manifest says about these latents, with their mean and standard deviation."""
        count, total, squares = 0, 0.0, 0.0
        for block in blocks:
            values = block.astype(np.float64)
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
        )

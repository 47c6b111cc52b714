"""Which frequencies a network's feature maps carry, per block and timestep: the observation MEME rests on.

MEME (arXiv:2306.04990) reads from such curves that experts of one architecture all look alike, and that a noisy-end
expert with more attention drops high frequencies. The measure is the relative log amplitude of Park & Kim 2022
(arXiv:2202.06709).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workloads.config.intervals import IntervalTable
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import ConfigError
from workloads.files import new_file
from workloads.training.loss_by_timestep import fixed_examples

if TYPE_CHECKING:
    from workloads.data.prepared import PreparedDataset
    from workloads.ensemble import Ensemble

# Axes: B batch, C channels, H height, W width, F frequencies, T timesteps looked at.

BLOCK = re.compile(r"(down_blocks|up_blocks|blocks)\.\d+|mid_block")
"""Levels of a U-Net, or blocks of a DiT."""

NOISY_IMAGE = "x_t"
"""The block that stands for what the network is given: the same for all networks (MEME, Fig. 2)."""

BATCH_SIZE = 16
"""Images whose maps are transformed at once; float64 spectra of wide blocks are large."""


@dataclass(frozen=True)
class Spectra:
    """Curves of one network: relative log amplitude (natural logarithm) over frequency."""

    timesteps: tuple[int, ...]
    frequencies: dict[str, np.ndarray]
    """Per block, in the order data takes: (F,) in units of pi radians per pixel of that block's map."""

    amplitudes: dict[str, np.ndarray]
    """Per block: (T, F); 0 at frequency 0."""

    def high_frequency(self, block: str, above: float = 0.5) -> np.ndarray:
        """(T,) mean relative log amplitude at frequencies of at least `above` pi: one number per curve."""
        mean_T: np.ndarray = self.amplitudes[block][:, self.frequencies[block] >= above].mean(axis=1)
        return mean_T


def relative_log_amplitude(features_BCHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (F,) in units of pi, rising from 0, and the curve (F,), both float64.

    Log amplitude of each map's 2-D DFT along the diagonal, minus its value at frequency 0, averaged over channels
    and samples (Park & Kim 2022; they leave out the Nyquist frequency, which an even H has at exactly pi). What
    rounding leaves of an amplitude of zero counts as 2e-16 of the map's largest, so that the logarithm is finite.
    """
    height, width = features_BCHW.shape[-2:]
    if height != width:
        raise ValueError(f"feature maps are {height} x {width}; the diagonal frequency axis needs square ones")
    spectrum_BCHW = torch.fft.fft2(features_BCHW.double())
    amplitude_BCF = spectrum_BCHW.diagonal(dim1=-2, dim2=-1)[..., : height // 2 + 1].abs()
    limits = torch.finfo(torch.float64)
    floor_BC1 = (spectrum_BCHW.abs().amax(dim=(-2, -1)) * limits.eps).clamp(min=limits.tiny).unsqueeze(-1)
    log_BCF = amplitude_BCF.maximum(floor_BC1).log()
    curve_F = (log_BCF - log_BCF[..., :1]).mean(dim=(0, 1))
    return np.arange(height // 2 + 1) * 2 / height, curve_F.cpu().numpy()


def feature_spectra(
    model: nn.Module,
    process: DiffusionProcess,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps: Sequence[int],
    labels_B: Tensor | None = None,
) -> Spectra:
    """Spectra of x_t and of every block on these images and noises: a U-Net's encoder levels, middle and decoder
    levels, or a DiT's blocks.

    Looks at each block's last map at its finest resolution: of an encoder level, the one before downsampling; of a
    DiT's block, its tokens as they lie in the image, a pixel each.
    Tensors must be on the model's device. ConfigError if the network has no such blocks.
    """
    frequencies: dict[str, np.ndarray] = {}
    amplitudes: dict[str, np.ndarray] = {}
    for row, timestep in enumerate(timesteps):
        for start in range(0, len(x0_BCHW), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            t_B = torch.full((len(x0_BCHW[part]),), timestep, device=x0_BCHW.device)
            x_t_BCHW = process.add_noise(x0_BCHW[part], noise_BCHW[part], t_B)
            maps = {NOISY_IMAGE: x_t_BCHW}
            maps |= block_features(model, x_t_BCHW, t_B, None if labels_B is None else labels_B[part])
            for block, map_BCHW in maps.items():
                frequencies[block], curve_F = relative_log_amplitude(map_BCHW)
                curves_TF = amplitudes.setdefault(block, np.zeros((len(timesteps), len(curve_F))))
                curves_TF[row] += curve_F * len(t_B) / len(x0_BCHW)
    return Spectra(tuple(timesteps), frequencies, amplitudes)


def ensemble_spectra(
    ensemble: Ensemble,
    dataset: PreparedDataset,
    *,
    timesteps: Sequence[int] | None = None,
    num_images: int = 64,
    seed: int = 0,
    everywhere: bool = False,
    on_expert: Callable[[], None] = lambda: None,
) -> tuple[Spectra, ...]:
    """One Spectra per expert, at those of the timesteps it owns, or with everywhere=True at all.

    on_expert() hears of each.

    timesteps None: spread_timesteps of the intervals. Images and noise are the same for every expert and timestep.
    """
    process = DiffusionProcess(ensemble.diffusion, ensemble.device)
    wanted = spread_timesteps(ensemble.intervals) if timesteps is None else tuple(timesteps)
    parts = list(fixed_examples(dataset, num_images=num_images, seed=seed))
    x0_BCHW, noise_BCHW, labels_B = (
        torch.cat(tensors).to(ensemble.device)
        for tensors in zip(*((batch.images_BCHW, noise, batch.labels_B) for batch, noise in parts), strict=True)
    )
    known_B = labels_B if ensemble.num_classes is not None else None
    found = []
    for index, (lo, hi) in enumerate(ensemble.intervals):
        own = wanted if everywhere else [t for t in wanted if lo <= t < hi]
        found.append(feature_spectra(ensemble.expert(index), process, x0_BCHW, noise_BCHW, own, known_B))
        on_expert()
    return tuple(found)


def spread_timesteps(intervals: IntervalTable, per_interval: int | None = None) -> tuple[int, ...]:
    """The middle timesteps of equal parts of each interval; None: three parts, more if there are few intervals."""
    num_parts = per_interval or max(3, -(-9 // len(intervals)))
    parts = [(interval, 2 * part + 1) for interval in intervals for part in range(num_parts)]
    return tuple(sorted({lo + odd * (hi - lo) // (2 * num_parts) for (lo, hi), odd in parts}))


def block_features(model: Any, x_t_BCHW: Tensor, t_B: Tensor, labels_B: Tensor | None = None) -> dict[str, Tensor]:
    """Each block's feature map (B, C, H, W) by the block's name, in the order data takes."""
    with torch.inference_mode(), _recorded(model) as maps:
        model(x_t_BCHW, t_B, class_labels=labels_B)
    return maps


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the blocks yield while this is open, through forward hooks."""
    blocks = {name: module for name, module in model.named_modules() if BLOCK.fullmatch(name)}
    if not blocks:
        raise ConfigError(
            f"spectra need a U-Net or a DiT: {type(model).__name__} has no down_blocks.*, mid_block, up_blocks.* or "
            "blocks.* to look at"
        )
    maps: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: maps.update({name: _finest(output)}))
        for name, module in blocks.items()
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _finest(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The output itself; of tokens, the map they make; of an encoder level's (output, maps for the decoder, ...), the
    last of the largest maps.
    """
    if isinstance(output, Tensor):
        return tokens_as_map(output) if output.ndim == 3 else output
    maps: tuple[Tensor, ...] = output[1]
    largest = max(map_BCHW.shape[-1] for map_BCHW in maps)
    return [map_BCHW for map_BCHW in maps if map_BCHW.shape[-1] == largest][-1]


def tokens_as_map(x_BLC: Tensor) -> Tensor:
    """(B, C, H, W) of L = H W tokens of a square image, row by row."""
    side = math.isqrt(x_BLC.shape[1])
    return x_BLC.transpose(1, 2).reshape(len(x_BLC), -1, side, side)


def spread_between(networks: Sequence[Spectra], block: str, above: float = 0.5) -> float:
    """How much networks differ: the standard deviation over them of the mean relative log amplitude at frequencies of
    at least `above` pi, averaged over the timesteps. They must have been seen at the same ones. NaN for one network.
    """
    if len(networks) == 1:
        return math.nan
    if len({spectra.timesteps for spectra in networks}) != 1:
        raise ValueError("networks were seen at different timesteps, so what differs may be the timesteps")
    high_NT = np.array([spectra.high_frequency(block, above) for spectra in networks])
    return float(high_NT.std(axis=0, ddof=1).mean())


def write_curves(file: Path, networks: Sequence[tuple[str, Spectra]]) -> None:
    """CSV, one line per network, block, timestep and frequency (in units of pi per pixel of the block's map)."""
    with new_file(file) as scratch, scratch.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["network", "block", "timestep", "frequency_pi", "relative_log_amplitude"])
        for name, spectra in networks:
            for block, curves_TF in spectra.amplitudes.items():
                for timestep, curve_F in zip(spectra.timesteps, curves_TF, strict=True):
                    for frequency, value in zip(spectra.frequencies[block], curve_F, strict=True):
                        writer.writerow([name, block, timestep, f"{frequency:.6g}", f"{value:.6g}"])

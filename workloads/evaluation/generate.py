"""Images of a protocol, in fixed batches: any worker that generates a batch generates the same images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workloads.config.evaluation import ProtocolConfig, SamplingConfig
from workloads.diffusion.sampling import sample
from workloads.ensemble import Ensemble
from workloads.seeding import derive_seed

# Axes: B batch, C channels, H height, W width.

NO_CLASS = -1
"""Label of an image drawn without a class."""


def batch_indices(protocol: ProtocolConfig) -> list[range]:
    """Indices of the images of each batch; the last batch may be shorter."""
    return [
        range(start, min(start + protocol.batch_size, protocol.num_samples))
        for start in range(0, protocol.num_samples, protocol.batch_size)
    ]


def labels_of(indices: Sequence[int], num_classes: int | None) -> Tensor:
    """Classes in turn, so that each is drawn equally often: int64 (B,); NO_CLASS without classes."""
    return torch.tensor([NO_CLASS if num_classes is None else index % num_classes for index in indices])


def image_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """Of the noise of each image, whatever batch it is in."""
    return [derive_seed("sample", seed, index) for index in indices]


def generate_batch(ensemble: Ensemble, protocol: ProtocolConfig, indices: range) -> tuple[Tensor, Tensor]:
    """uint8 images (B, C, H, W) and int64 labels (B,) on the CPU; depends on nothing but the arguments.

    Image i starts from the noise of seed ("sample", protocol.seed, i), whatever batch it is in.
    """
    labels_B = labels_of(indices, ensemble.num_classes)
    return generate(ensemble, protocol.sampling, image_seeds(protocol.seed, indices), labels_B), labels_B


@torch.inference_mode()
def generate(ensemble: Ensemble, sampling: SamplingConfig, seeds: Sequence[int], labels_B: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) on the CPU, one per seed and label; without classes labels are not looked at."""
    x_BCHW = sample(
        ensemble.denoise,
        shape_CHW=ensemble.shape_CHW,
        diffusion=ensemble.diffusion,
        sampling=sampling,
        seeds=seeds,
        labels_B=None if ensemble.num_classes is None else labels_B,
        null_label=ensemble.num_classes,
        device=ensemble.device,
        clip=ensemble.index.latent is None,  # pixels lie in [-1, 1], latents have no bounds
    )
    return ensemble.decode(x_BCHW)

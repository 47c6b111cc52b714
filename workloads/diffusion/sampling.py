"""From noise to images with diffusers' schedulers.

Every image has its own noise generator, so what is drawn does not depend on what else is in the batch.
Axes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import SamplingConfig
from workloads.diffusion.process import scheduler_fields

Denoiser = Callable[[Tensor, int, Tensor | None], Tensor]
"""(x_BCHW, timestep, labels_B or None) -> what the network predicts, (B, C, H, W)."""


def make_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig) -> Any:
    """The diffusers scheduler. Steps are spaced to start at t = T - 1 ("trailing", arXiv:2305.08891), where the
    process is closest to the pure noise sampling starts from.

    Nothing is clipped on the way: clipping the predicted x_0 is a choice for pixels, wrong for latents, and
    would make the two samplers disagree.
    """
    fields = scheduler_fields(diffusion) | {"timestep_spacing": "trailing"}
    if sampling.sampler == "ddim":
        return DDIMScheduler(**fields, clip_sample=False, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler(**fields, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero")


def initial_noise(shape_CHW: tuple[int, int, int], seeds: Sequence[int]) -> Tensor:
    """Standard normal (B, C, H, W) on the CPU, one seed an image."""
    return torch.stack([torch.randn(shape_CHW, generator=_generator(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    denoise: Denoiser,
    *,
    shape_CHW: tuple[int, int, int],
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    labels_B: Tensor | None = None,
    null_label: int | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw one image (or latent) per seed: (B, C, H, W) on `device`, about [-1, 1] but not clipped."""
    scheduler = make_scheduler(diffusion, sampling)
    scheduler.set_timesteps(sampling.num_steps)
    # The generators run on: the start of each stream is the image's first noise, the rest DDIM's own (eta > 0).
    generators = [_generator(seed) for seed in seeds]
    x_BCHW = torch.stack([torch.randn(shape_CHW, generator=generator) for generator in generators]).to(device)
    guided = guide(denoise, sampling.guidance_scale, null_label)
    labels_B = None if labels_B is None else labels_B.to(device)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        output_BCHW = guided(x_BCHW, int(timestep), labels_B)
        options: dict[str, Any] = {}
        if sampling.eta > 0:
            fresh = [torch.randn(shape_CHW, generator=generator) for generator in generators]
            options = {"eta": sampling.eta, "variance_noise": torch.stack(fresh).to(device)}
        x_BCHW = scheduler.step(output_BCHW, int(timestep), x_BCHW, **options).prev_sample
        if on_step is not None:
            on_step(step + 1, sampling.num_steps)
    return x_BCHW


def guide(denoise: Denoiser, scale: float, null_label: int | None) -> Denoiser:
    """Classifier-free guidance: without + scale (with - without). arXiv:2207.12598, Eq. 6, with scale = w + 1."""
    if scale == 1:
        return denoise
    if null_label is None:
        raise ValueError(f"guidance_scale {scale} needs a class-conditional network")

    def guided(x_BCHW: Tensor, timestep: int, labels_B: Tensor | None) -> Tensor:
        assert labels_B is not None
        both = torch.cat([labels_B, torch.full_like(labels_B, null_label)])
        with_B, without_B = denoise(torch.cat([x_BCHW, x_BCHW]), timestep, both).chunk(2)
        return without_B + scale * (with_B - without_B)

    return guided


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

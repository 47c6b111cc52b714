"""From noise to images, on diffusers' DDIM and DPM-Solver++ schedulers.

Every image has its own noise generator, so what is drawn does not depend on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import SamplingConfig
from workloads.diffusion.process import scheduler_fields
from workloads.errors import ConfigError
from workloads.progress import Progress

# Axes: B batch, C channels, H height, W width, T timesteps.

Denoiser = Callable[[Tensor, int, Tensor | None], Tensor]
"""(x_BCHW, timestep, labels_B or None) -> what the network predicts, (B, C, H, W)."""

MIN_HALF_LOG_SNR = -5.1
"""Where log(sqrt(abar) / sqrt(1 - abar)) is lower, the x_0 implied by an epsilon-prediction multiplies its error by
more than 164, at the end of the cosine schedule by 20,000. diffusers recommends this value as lambda_min_clipped;
it shortens squaredcos_cap_v2 by a few timesteps and the usual linear schedules by none."""


def sampling_timesteps(diffusion: DiffusionConfig, num_steps: int) -> list[int]:
    """Timesteps to call the network at, falling; after the last one comes the clean image.

    "Trailing" spacing (Lin et al. 2024, arXiv:2305.08891): sampling starts from pure noise, so the first call must
    be at (or next to) t = T - 1, where training saw nearly pure noise; diffusers' "leading" starts lower.
    """
    num_usable = diffusion.num_timesteps
    if num_steps > num_usable:
        raise ConfigError(f"num_steps is {num_steps}; it must be at most num_timesteps, {num_usable}")
    if diffusion.objective == "epsilon":
        lambda_T = DPMSolverMultistepScheduler(**scheduler_fields(diffusion)).lambda_t
        num_usable = max(num_steps, int((lambda_T >= MIN_HALF_LOG_SNR).sum()))
    return [-(-(num_steps - i) * num_usable // num_steps) - 1 for i in range(num_steps)]


def make_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig, *, clip: bool = False) -> SchedulerMixin:
    """A diffusers scheduler with its timesteps set.

    clip: keep each estimate of x_0 in [-1, 1]; right for pixels, which lie there, wrong for latents, which have no
    bounds. DPM-Solver++ has dynamic thresholding only, which for sample_max_value 1 is just that clipping.
    """
    timesteps = sampling_timesteps(diffusion, sampling.num_steps)
    fields = scheduler_fields(diffusion) | {"timestep_spacing": "trailing", "sample_max_value": 1.0}
    if sampling.sampler == "dpm++":
        solver = DPMSolverMultistepScheduler(**fields, thresholding=clip)
        solver.set_timesteps(timesteps=timesteps)
        return solver
    ddim = DDIMScheduler(**fields, clip_sample=clip)
    ddim.set_timesteps(sampling.num_steps)
    ddim.timesteps = torch.tensor(timesteps)
    # In float32, 1 - abar_prev - sigma^2 (Eq. 12) can come out negative where abar is close to 0.
    ddim.alphas_cumprod = ddim.alphas_cumprod.double()
    ddim.final_alpha_cumprod = ddim.final_alpha_cumprod.double()
    return ddim


def initial_noise(shape_CHW: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal (B, C, H, W) on the CPU; image i depends on seeds[i] alone, on whatever device it ends up."""
    return _draw(shape_CHW, [_generator(seed) for seed in seeds])


@torch.inference_mode()
def sample(
    denoise: Denoiser,
    *,
    shape_CHW: Sequence[int],
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    labels_B: Tensor | None = None,
    null_label: int | None = None,
    device: torch.device | str = "cpu",
    on_step: Progress | None = None,
    clip: bool = False,
) -> Tensor:
    """Draw one image (or latent) per seed: (B, C, H, W) on `device`, about [-1, 1] but not clamped.

    null_label is the label that means "no class"; without labels_B it stands in for every image's class. clip is
    explained at make_scheduler. on_step(steps done, steps) follows each step. ConfigError if guidance lacks classes.
    """
    scheduler = make_scheduler(diffusion, sampling, clip=clip)
    # The generators run on: the start of each stream is the image's first noise, the rest DDIM's own (eta > 0).
    generators = [_generator(seed) for seed in seeds]
    x_BCHW = _draw(shape_CHW, generators).to(device)
    if labels_B is None and null_label is not None:
        labels_B = torch.full((len(seeds),), null_label)
    labels_B = None if labels_B is None else labels_B.to(device)
    guided = guide(denoise, sampling.guidance_scale, labels_B, null_label)
    timesteps = scheduler.timesteps.tolist()
    for done, (timestep, next_timestep) in enumerate(pairwise([*timesteps, -1]), start=1):
        output_BCHW = guided(x_BCHW, timestep)
        options: dict[str, Any] = {}
        if sampling.sampler == "ddim":
            # DDIMScheduler steps to timestep - T // num_inference_steps: beside the next one if steps do not divide T.
            scheduler.num_inference_steps = Fraction(diffusion.num_timesteps, timestep - next_timestep)
            options = {"eta": sampling.eta, "use_clipped_model_output": clip}
            if sampling.eta > 0:
                options["variance_noise"] = _draw(shape_CHW, generators).to(device)
        x_BCHW = scheduler.step(output_BCHW, timestep, x_BCHW, **options).prev_sample
        if on_step is not None:
            on_step(done, len(timesteps))
    return x_BCHW


def guide(
    denoise: Denoiser, scale: float, labels_B: Tensor | None, null_label: int | None
) -> Callable[[Tensor, int], Tensor]:
    """Classifier-free guidance, without + scale (with - without): arXiv:2207.12598, Eq. 6, with scale = w + 1.

    Scales 1 and 0 need, and cost, one forward pass per image; all others two.
    """
    if scale == 1:
        return lambda x_BCHW, timestep: denoise(x_BCHW, timestep, labels_B)
    if labels_B is None or null_label is None:
        raise ConfigError(f"guidance_scale {scale} needs a class-conditional network; without classes it must be 1")
    null_B = torch.full_like(labels_B, null_label)
    if scale == 0:
        return lambda x_BCHW, timestep: denoise(x_BCHW, timestep, null_B)
    both_2B = torch.cat([labels_B, null_B])

    def guided(x_BCHW: Tensor, timestep: int) -> Tensor:
        with_BCHW, without_BCHW = denoise(torch.cat([x_BCHW, x_BCHW]), timestep, both_2B).chunk(2)
        return without_BCHW + scale * (with_BCHW - without_BCHW)

    return guided


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(shape_CHW: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(*shape_CHW, generator=generator) for generator in generators])

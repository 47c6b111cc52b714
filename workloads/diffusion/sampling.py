"""From noise to images, on diffusers' schedulers.

Every image has its own noise generator, so what is drawn does not depend on what else is in the batch.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import OWN_SAMPLERS, VARIANCE_SAMPLERS, SamplingConfig
from workloads.diffusion.process import scheduler_fields, split_variance
from workloads.diffusion.schedulers import (
    RespacedDDPMScheduler,
    TrailingDDIMScheduler,
    trailing_timesteps,
)
from workloads.errors import ConfigError
from workloads.progress import Progress

# Axes: B batch, C channels, H height, W width, T timesteps.

Denoiser = Callable[[Tensor, float, Tensor | None], Tensor]
"""(x_BCHW, timestep, labels_B or None) -> what the network predicts: (B, C, H, W), or 2 C channels if it learned
variances. Only some schedulers of diffusers call at timesteps that are not whole."""


def sampling_timesteps(diffusion: DiffusionConfig, num_steps: int) -> list[int]:
    """Timesteps that ddim and dpm++ call the network at, falling; ConfigError if they are fewer than steps."""
    return trailing_timesteps(DDPMScheduler(**scheduler_fields(diffusion)), num_steps)


def make_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig, *, clip: bool = False) -> SchedulerMixin:
    """A diffusers scheduler with its timesteps set.

    clip: keep each estimate of x_0 in [-1, 1]; right for pixels, which lie there, wrong for latents, which have no
    bounds. DPM-Solver++ has dynamic thresholding only, which for sample_max_value 1 is just that clipping.

    ConfigError if diffusers has no such scheduler, or it does not go with this diffusion, its options or its steps.
    """
    if sampling.sampler not in OWN_SAMPLERS:
        return _named_scheduler(diffusion, sampling, clip=clip)
    scheduler = _own_scheduler(diffusion, sampling.sampler, clip=clip)
    scheduler.set_timesteps(sampling.num_steps)
    return scheduler


def _own_scheduler(diffusion: DiffusionConfig, sampler: str, *, clip: bool) -> Any:
    fields = scheduler_fields(diffusion) | {"timestep_spacing": "trailing", "sample_max_value": 1.0}
    if sampler == "dpm++":
        from workloads.diffusion.dpm_solver import TrailingDPMSolverScheduler

        return TrailingDPMSolverScheduler(**fields, thresholding=clip)
    if sampler == "ddpm":
        # Evenly spaced real numbers from T - 1 to 0, rounded (Nichol & Dhariwal 2021, Sec. 4): diffusers' linspace.
        published = fields | {"timestep_spacing": "linspace", "variance_type": "learned_range"}
        return RespacedDDPMScheduler(**published, clip_sample=clip)
    return TrailingDDIMScheduler(**fields, clip_sample=clip)


def _named_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig, *, clip: bool) -> SchedulerMixin:
    """diffusers' own, as its pipelines use it."""
    name, options = sampling.sampler, sampling.options
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        near = difflib.get_close_matches(name, [other for other in dir(diffusers) if other.endswith("Scheduler")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"evaluation.sampling.sampler is {name}, which diffusers {diffusers.__version__} does not have here{hint}"
        )
    fields, known = scheduler_fields(diffusion), inspect.signature(kind).parameters.keys()
    asked = [parameter.name for parameter in _step_parameters(kind) if parameter.default is parameter.empty]
    if not fields.keys() <= known or set(asked) - {"self", "model_output", "timestep", "sample"}:
        raise ConfigError(
            f"evaluation.sampling.sampler {name} is not for a diffusion of given betas; choose another: ddim"
        )
    if wrong := sorted(options.keys() - known | options.keys() & fields.keys()):
        free = ", ".join(sorted(known - fields.keys()))
        raise ConfigError(f"evaluation.sampling.options has {wrong[0]}, which is none of {name}'s; it has {free}")
    ours: dict[str, Any] = {"clip_sample": clip} if "clip_sample" in known else {}
    ours |= {"variance_type": "learned_range"} if name in VARIANCE_SAMPLERS else {}
    try:
        scheduler: Any = kind(**fields | ours | options)
        scheduler.set_timesteps(sampling.num_steps)
    except (ValueError, TypeError, ImportError, NotImplementedError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"sampling.sampler {name} takes no {sampling.num_steps} steps so: {reason}") from None
    if not torch.allclose(scheduler.alphas_cumprod, DDPMScheduler(**fields).alphas_cumprod, rtol=1e-3):
        raise ConfigError(f"sampling.sampler {name} has a noise schedule that is not diffusion's; choose another: ddim")
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise ConfigError(f"sampling.sampler {name} goes from images to noise; choose another: ddim")
    check_timesteps(scheduler)
    return scheduler


def check_timesteps(scheduler: Any) -> None:
    """Raise ConfigError if the scheduler, set to its steps, calls at timesteps that no network was trained for."""
    name, num_timesteps = type(scheduler).__name__, scheduler.config.num_train_timesteps
    outside = [t for t in scheduler.timesteps.tolist() if not 0 <= t < num_timesteps]  # as is what is no number
    if outside:
        raise ConfigError(
            f"{name}, with these options and steps, calls at timestep {outside[0]:g} of 0 to {num_timesteps - 1}; "
            "choose another number of steps, or another timestep_spacing"
        )


def _step_parameters(kind: type[SchedulerMixin]) -> list[inspect.Parameter]:
    step = getattr(kind, "step", None)  # predictor-corrector schedulers have step_pred instead
    return [] if step is None else list(inspect.signature(step).parameters.values())


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
    scheduler: Any = make_scheduler(diffusion, sampling, clip=clip)
    # The generators run on: the start of each stream is the image's first noise, the rest the sampler's own.
    generators = [_generator(seed) for seed in seeds]
    x_BCHW: Tensor = _draw(shape_CHW, generators).to(device) * scheduler.init_noise_sigma
    if labels_B is None and null_label is not None:
        labels_B = torch.full((len(seeds),), null_label)
    labels_B = None if labels_B is None else labels_B.to(device)
    guided = guide(denoise, sampling.guidance_scale, labels_B, null_label, sampling.guidance_channels)
    return follow(
        guided, x_BCHW, scheduler, generator=generators, eta=sampling.eta, variance=sampling.variance, on_step=on_step
    )


def follow(
    guided: Callable[[Tensor, float], Tensor],
    x_BCHW: Tensor,
    scheduler: Any,
    *,
    generator: torch.Generator | list[torch.Generator] | None,
    eta: float = 0.0,
    variance: str | None = None,
    on_step: Progress | None = None,
) -> Tensor:
    """From noise of the scheduler's first sigma down its timesteps, which are set: (B, C, H, W).

    guided(x_BCHW, timestep) is what the networks predict. generator draws the noise that a scheduler adds, one of each
    image or one for all; eta is for those that know it. variance "fixed" leaves out what the networks learned of it.
    """
    takes = {parameter.name for parameter in _step_parameters(type(scheduler))}
    told = {key: value for key, value in {"generator": generator, "eta": eta}.items() if key in takes}
    channels = x_BCHW.shape[1]
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        output_BCHW = guided(scheduler.scale_model_input(x_BCHW, timestep), timestep.item())
        output_BCHW = _for_scheduler(output_BCHW, scheduler, variance, channels)
        x_BCHW = scheduler.step(output_BCHW, timestep, x_BCHW, **told).prev_sample
        if on_step is not None:
            on_step(done, len(scheduler.timesteps))
    return x_BCHW


def _for_scheduler(output_BCHW: Tensor, scheduler: Any, variance: str | None, channels: int) -> Tensor:
    """The mean's prediction, with variances where the scheduler uses them: the learned ones, else the posterior's."""
    mean_BCHW, variance_BCHW = split_variance(output_BCHW, channels)
    if scheduler.config.get("variance_type") != "learned_range":
        return mean_BCHW
    if variance_BCHW is None or variance == "fixed":
        variance_BCHW = torch.full_like(mean_BCHW, -1)  # see DiffusionProcess.variational_bound
    return torch.cat([mean_BCHW, variance_BCHW], dim=1)


def guide(
    denoise: Denoiser, scale: float, labels_B: Tensor | None, null_label: int | None, channels: int | None = None
) -> Callable[[Tensor, float], Tensor]:
    """Classifier-free guidance, without + scale (with - without): arXiv:2207.12598, Eq. 6, with scale = w + 1.

    Of the first `channels` alone if they are given; the others, and learned variances, are those with the class.
    Scales 1 and 0 need, and cost, one forward pass per image; all others two.
    """
    if scale == 1:
        return lambda x_BCHW, timestep: denoise(x_BCHW, timestep, labels_B)
    if labels_B is None or null_label is None:
        raise ConfigError(f"guidance_scale {scale} needs a class-conditional network; without classes it must be 1")
    null_B = torch.full_like(labels_B, null_label)
    if scale == 0 and channels is None:
        return lambda x_BCHW, timestep: denoise(x_BCHW, timestep, null_B)
    both_2B = torch.cat([labels_B, null_B])

    def guided(x_BCHW: Tensor, timestep: float) -> Tensor:
        with_BCHW, without_BCHW = denoise(torch.cat([x_BCHW, x_BCHW]), timestep, both_2B).chunk(2)
        first = slice(min(channels or x_BCHW.shape[1], x_BCHW.shape[1]))
        guided_BCHW = without_BCHW[:, first] + scale * (with_BCHW[:, first] - without_BCHW[:, first])
        return torch.cat([guided_BCHW, with_BCHW[:, first.stop :]], dim=1)

    return guided


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(shape_CHW: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(*shape_CHW, generator=generator) for generator in generators])

"""From noise to images, on diffusers' schedulers.

Every image has its own noise generator, so what is drawn does not depend on what else is in the batch.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import OWN_SAMPLERS, VARIANCE_SAMPLERS, SamplingConfig
from workloads.diffusion.process import scheduler_fields, split_variance
from workloads.errors import ConfigError
from workloads.progress import Progress

# Axes: B batch, C channels, H height, W width, T timesteps.

Denoiser = Callable[[Tensor, float, Tensor | None], Tensor]
"""(x_BCHW, timestep, labels_B or None) -> what the network predicts: (B, C, H, W), or 2 C channels if it learned
variances. Only some schedulers of diffusers call at timesteps that are not whole."""

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

    ConfigError if diffusers has no such scheduler, or it does not go with this diffusion, its options or its steps.
    """
    if sampling.sampler not in OWN_SAMPLERS:
        return _named_scheduler(diffusion, sampling, clip=clip)
    timesteps = sampling_timesteps(diffusion, sampling.num_steps)
    fields = scheduler_fields(diffusion) | {"timestep_spacing": "trailing", "sample_max_value": 1.0}
    if sampling.sampler == "dpm++":
        solver = DPMSolverMultistepScheduler(**fields, thresholding=clip)
        solver.set_timesteps(timesteps=timesteps)
        return solver
    if sampling.sampler == "ddpm":
        # Evenly spaced real numbers from T - 1 to 0, rounded (Nichol & Dhariwal 2021, Sec. 4): diffusers' linspace.
        published = fields | {"timestep_spacing": "linspace", "variance_type": "learned_range"}
        ddpm = DDPMScheduler(**published, clip_sample=clip)
        ddpm.set_timesteps(sampling.num_steps)
        ddpm.alphas_cumprod = (1 - ddpm.betas.double()).cumprod(0)
        return ddpm
    ddim = DDIMScheduler(**fields, clip_sample=clip)
    ddim.set_timesteps(sampling.num_steps)
    ddim.timesteps = torch.tensor(timesteps)
    # In float32, 1 - abar_prev - sigma^2 (Eq. 12) can come out negative where abar is close to 0.
    ddim.alphas_cumprod = ddim.alphas_cumprod.double()
    ddim.final_alpha_cumprod = ddim.final_alpha_cumprod.double()
    return ddim


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
    return scheduler


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
    options_of = _step_options(scheduler, sampling, generators, clip=clip)
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        output_BCHW = guided(scheduler.scale_model_input(x_BCHW, timestep), timestep.item())
        output_BCHW = _for_scheduler(output_BCHW, scheduler, sampling, shape_CHW[0])
        x_BCHW = scheduler.step(output_BCHW, timestep, x_BCHW, **options_of(x_BCHW, done)).prev_sample
        if on_step is not None:
            on_step(done, len(scheduler.timesteps))
    return x_BCHW


def _step_options(
    scheduler: Any, sampling: SamplingConfig, generators: list[torch.Generator], *, clip: bool
) -> Callable[[Tensor, int], dict[str, Any]]:
    """(x_BCHW, number of the step from 1) -> what scheduler.step is told besides."""
    if sampling.sampler != "ddim":
        takes = {parameter.name for parameter in _step_parameters(type(scheduler))}
        told = {"generator": generators, "eta": sampling.eta}
        named = {key: value for key, value in told.items() if key in takes}
        return lambda _x_BCHW, _done: named
    timesteps = [*scheduler.timesteps.tolist(), -1]

    def of_ddim(x_BCHW: Tensor, done: int) -> dict[str, Any]:
        # DDIMScheduler steps to timestep - T // num_inference_steps: beside the next one if steps do not divide T.
        num_timesteps = scheduler.config.num_train_timesteps
        scheduler.num_inference_steps = Fraction(num_timesteps, timesteps[done - 1] - timesteps[done])
        options: dict[str, Any] = {"eta": sampling.eta, "use_clipped_model_output": clip}
        if sampling.eta > 0:
            options["variance_noise"] = _draw(x_BCHW.shape[1:], generators).to(x_BCHW.device)
        return options

    return of_ddim


def _for_scheduler(output_BCHW: Tensor, scheduler: Any, sampling: SamplingConfig, channels: int) -> Tensor:
    """The mean's prediction, with variances where the scheduler uses them: the learned ones, else the posterior's."""
    mean_BCHW, variance_BCHW = split_variance(output_BCHW, channels)
    if scheduler.config.get("variance_type") != "learned_range":
        return mean_BCHW
    if variance_BCHW is None or sampling.variance == "fixed":
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

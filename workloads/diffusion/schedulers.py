"""The samplers of this package as diffusers schedulers: saved, loaded and set to any number of steps as others are."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin
from torch import Tensor

from workloads.errors import ConfigError

# Pipelines of diffusers look for SchedulerMixin beside a class, to know its kind.
__all__ = ["RespacedDDPMScheduler", "SchedulerMixin", "TrailingDDIMScheduler"]

MIN_HALF_LOG_SNR = -5.1
"""Where log(sqrt(abar) / sqrt(1 - abar)) is lower, the x_0 implied by an epsilon-prediction multiplies its error by
more than 164, at the end of the cosine schedule by 20,000. diffusers recommends this value as lambda_min_clipped;
it shortens squaredcos_cap_v2 by a few timesteps and the usual linear schedules by none."""


def trailing_timesteps(scheduler: Any, num_steps: int) -> list[int]:
    """Timesteps to call the network at, falling; after the last one comes the clean image.

    "Trailing" spacing (Lin et al. 2024, arXiv:2305.08891): sampling starts from pure noise, so the first call must
    be at (or next to) t = T - 1, where training saw nearly pure noise; diffusers' "leading" starts lower.
    """
    num_usable: int = scheduler.config.num_train_timesteps
    if num_steps > num_usable:
        raise ConfigError(f"num_steps is {num_steps}; it must be at most num_timesteps, {num_usable}")
    if scheduler.config.prediction_type == "epsilon":
        abar_T: Tensor = scheduler.alphas_cumprod.float()
        lambda_T = abar_T.sqrt().log() - (1 - abar_T).sqrt().log()
        num_usable = max(num_steps, int((lambda_T >= MIN_HALF_LOG_SNR).sum()))
    return [-(-(num_steps - i) * num_usable // num_steps) - 1 for i in range(num_steps)]


class TrailingDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM (arXiv:2010.02502) over trailing timesteps, each step to the very next of them, in float64."""

    alphas_cumprod: Tensor
    final_alpha_cumprod: Tensor
    num_inference_steps: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """ConfigError if there are more steps than timesteps."""
        timesteps = trailing_timesteps(self, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(timesteps, device=device)
        self._after = dict(pairwise([*timesteps, -1]))
        # In float32, 1 - abar_prev - sigma^2 (Eq. 12) can come out negative where abar is close to 0.
        self.alphas_cumprod = self.alphas_cumprod.double()
        self.final_alpha_cumprod = self.final_alpha_cumprod.double()

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As DDIMScheduler's; where x_0 is clipped, the noise is what the clipped one implies."""
        # DDIMScheduler steps to timestep - T // num_inference_steps: beside the next one if steps do not divide T.
        gap, num_steps = int(timestep) - self._after[int(timestep)], self.num_inference_steps
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, gap)
        try:
            return super().step(
                model_output,
                timestep,
                sample,
                eta=eta,
                use_clipped_model_output=self.config.clip_sample,
                generator=generator,
                return_dict=return_dict,
            )
        finally:
            self.num_inference_steps = num_steps


class RespacedDDPMScheduler(DDPMScheduler):  # type: ignore[misc]
    """Ancestral sampling over evenly spaced timesteps from T - 1 to 0 (arXiv:2102.09672, Sec. 4), in float64.

    Made with timestep_spacing linspace and variance_type learned_range, it samples DiT as published.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As DDPMScheduler's."""
        super().set_timesteps(num_inference_steps, device)
        self.alphas_cumprod = (1 - self.betas.double()).cumprod(0)


def __getattr__(name: str) -> Any:
    if name == "TrailingDPMSolverScheduler":  # where exports of earlier versions look for it
        from workloads.diffusion.dpm_solver import TrailingDPMSolverScheduler

        return TrailingDPMSolverScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""DPM-Solver++, beside the other schedulers: diffusers imports scipy.stats for it, which takes a second."""

from typing import Any

from diffusers import DPMSolverMultistepScheduler, SchedulerMixin

from workloads.diffusion.schedulers import trailing_timesteps

# Pipelines of diffusers look for SchedulerMixin beside a class, to know its kind.
__all__ = ["SchedulerMixin", "TrailingDPMSolverScheduler"]


class TrailingDPMSolverScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Second-order multistep DPM-Solver++ (arXiv:2211.01095) over trailing timesteps."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """ConfigError if there are more steps than timesteps."""
        super().set_timesteps(device=device, timesteps=trailing_timesteps(self, num_inference_steps))

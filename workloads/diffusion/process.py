"""The forward process and the training objective, on the noise schedule of a diffusers scheduler."""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig

# Axes: B batch, C channels, H height, W width, T timesteps.


def scheduler_fields(config: DiffusionConfig) -> dict[str, Any]:
    """What every diffusers scheduler must be told to share the one noise schedule."""
    return {
        "num_train_timesteps": config.num_timesteps,
        "beta_schedule": config.schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.objective,
    }


class DiffusionProcess:
    """q(x_t | x_0), what the network should predict, and how its error counts."""

    def __init__(self, config: DiffusionConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self._scheduler = DDPMScheduler(**scheduler_fields(config))
        self.alphas_cumprod_T: Tensor = self._scheduler.alphas_cumprod.to(device)
        self._scheduler.alphas_cumprod = self.alphas_cumprod_T
        self._weights_T = _min_snr_weights(config, self.alphas_cumprod_T)

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t given x_0 (Ho et al. 2020, arXiv:2006.11239, Eq. 4)."""
        noisy_BCHW: Tensor = self._scheduler.add_noise(x0_BCHW, noise_BCHW, t_B)
        return noisy_BCHW

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022, arXiv:2202.00512)."""
        if self.config.objective == "epsilon":
            return noise_BCHW
        velocity_BCHW: Tensor = self._scheduler.get_velocity(x0_BCHW, noise_BCHW, t_B)
        return velocity_BCHW

    def loss_weight(self, t_B: Tensor) -> Tensor:
        """(B,) weight of each image's squared error; ones without min-SNR."""
        return self._weights_T[t_B]

    def loss(
        self, prediction_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, *, weighted: bool = True
    ) -> Tensor:
        """(B,) squared error, averaged over C, H and W."""
        error_B = (prediction_BCHW - self.target(x0_BCHW, noise_BCHW, t_B)).square().mean(dim=(1, 2, 3))
        return error_B * self.loss_weight(t_B) if weighted else error_B


def _min_snr_weights(config: DiffusionConfig, alphas_cumprod_T: Tensor) -> Tensor:
    """(T,) weights by which the x_0 error counts min(SNR, gamma) times (Hang et al. 2023, arXiv:2303.09556).

    The x_0 error is the epsilon error over SNR, or the v error over SNR + 1.
    """
    if config.min_snr_gamma is None:
        return torch.ones_like(alphas_cumprod_T)
    snr_T = alphas_cumprod_T / (1 - alphas_cumprod_T)
    error_scale_T = snr_T if config.objective == "epsilon" else snr_T + 1
    return snr_T.clamp(max=config.min_snr_gamma) / error_scale_T

"""The forward process and the training loss, on tables taken from a diffusers scheduler.

Axes: T timesteps, B batch, C channels, H height, W width.
"""

from diffusers import DDPMScheduler
from torch import Tensor, device

from workloads.config.diffusion import DiffusionConfig


def scheduler_fields(config: DiffusionConfig) -> dict[str, object]:
    """What every diffusers scheduler of this process has in common."""
    return {
        "num_train_timesteps": config.num_timesteps,
        "beta_schedule": config.schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.objective,
    }


class DiffusionProcess:
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I). Ho et al. 2020, arXiv:2006.11239, Eq. 4."""

    def __init__(self, config: DiffusionConfig, device: device | str = "cpu") -> None:
        self.config = config
        self._scheduler = DDPMScheduler(**scheduler_fields(config))
        self._scheduler.alphas_cumprod = self._scheduler.alphas_cumprod.to(device)
        self.alphas_cumprod_T: Tensor = self._scheduler.alphas_cumprod

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        noisy: Tensor = self._scheduler.add_noise(x0_BCHW, noise_BCHW, t_B)
        return noisy

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noise, or v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (arXiv:2202.00512, Appendix D)."""
        if self.config.objective == "epsilon":
            return noise_BCHW
        velocity: Tensor = self._scheduler.get_velocity(x0_BCHW, noise_BCHW, t_B)
        return velocity

    def loss_weight(self, t_B: Tensor) -> Tensor:
        """(B,): ones, or min-SNR-gamma (arXiv:2303.09556, Sec. 3.4): min(SNR, gamma)/SNR for noise, /(SNR + 1) for v."""
        abar_B = self.alphas_cumprod_T[t_B]
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return abar_B.new_ones(abar_B.shape)
        snr_B = abar_B / (1 - abar_B)
        clipped_B = snr_B.clamp(max=gamma)
        return clipped_B / (snr_B if self.config.objective == "epsilon" else snr_B + 1)

    def loss(
        self, prediction_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, *, weighted: bool = True
    ) -> Tensor:
        """(B,): squared error averaged over C, H, W, times the weight of its timestep."""
        error_B = (prediction_BCHW - self.target(x0_BCHW, noise_BCHW, t_B)).square().flatten(1).mean(1)
        return error_B * self.loss_weight(t_B) if weighted else error_B

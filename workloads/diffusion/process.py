"""The forward process and the training objective, on the noise schedule of a diffusers scheduler."""

import math
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
        # On the device from the start, so that no step waits for a transfer.
        self._scheduler.alphas_cumprod = self.alphas_cumprod_T
        self._posterior = {name: table.to(device) for name, table in _posterior(self._scheduler.betas.double()).items()}
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
        """(B,) squared error, averaged over C, H and W.

        A prediction of 2 C channels has learned variances; their variational bound is added to a weighted loss
        (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 16, whose lambda of 0.001 is 1 / T for T = 1000).
        """
        mean_BCHW, variance_BCHW = split_variance(prediction_BCHW, x0_BCHW.shape[1])
        error_B = (mean_BCHW - self.target(x0_BCHW, noise_BCHW, t_B)).square().mean(dim=(1, 2, 3))
        if not weighted:
            return error_B
        loss_B = error_B * self.loss_weight(t_B)
        if variance_BCHW is not None:
            x_t_BCHW = self.add_noise(x0_BCHW, noise_BCHW, t_B)
            # Detached: the bound is to train the variance alone, the error trains the mean (Sec. 3.1).
            loss_B = loss_B + self.variational_bound(mean_BCHW.detach(), variance_BCHW, x0_BCHW, x_t_BCHW, t_B)
        return loss_B

    def estimate(self, mean_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The x_0 that a prediction of the noise or v stands for."""
        signal, noise = (self._posterior[name][t_B].view(-1, 1, 1, 1) for name in ("signal_scale", "noise_scale"))
        if self.config.objective == "epsilon":
            return (x_t_BCHW - noise * mean_BCHW) / signal
        return signal * x_t_BCHW - noise * mean_BCHW

    def variational_bound(
        self, mean_BCHW: Tensor, variance_BCHW: Tensor, x0_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """(B,) bits per dimension: KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)), or -log p(x_0 | x_1) at t = 0.

        mean_BCHW is what the network predicts (noise or v), variance_BCHW its share between the two bounds of the
        log variance, -1 for the posterior's and 1 for beta (Eq. 15).
        """
        of = {name: table_T[t_B].view(-1, 1, 1, 1) for name, table_T in self._posterior.items()}
        log_posterior_B = of["log_variance"]
        share_BCHW = (variance_BCHW + 1) / 2
        log_variance_BCHW = share_BCHW * of["log_beta"] + (1 - share_BCHW) * log_posterior_B
        guess_BCHW = self.estimate(mean_BCHW, x_t_BCHW, t_B)
        model_mean_BCHW = of["from_x_0"] * guess_BCHW + of["from_x_t"] * x_t_BCHW
        true_mean_BCHW = of["from_x_0"] * x0_BCHW + of["from_x_t"] * x_t_BCHW
        divergence = 0.5 * (
            log_variance_BCHW
            - log_posterior_B
            - 1
            + (log_posterior_B - log_variance_BCHW).exp()
            + (true_mean_BCHW - model_mean_BCHW).square() * (-log_variance_BCHW).exp()
        )
        likelihood = _log_likelihood_of_8_bits(x0_BCHW, model_mean_BCHW, log_variance_BCHW / 2)
        bits_BCHW = torch.where((t_B == 0).view(-1, 1, 1, 1), -likelihood, divergence) / math.log(2)
        return bits_BCHW.mean(dim=(1, 2, 3))


def _posterior(betas_T: Tensor) -> dict[str, Tensor]:
    """(T,) tables of q(x_t-1 | x_t, x_0) (Ho et al. 2020, Eq. 7), worked out in float64: 1 - abar is tiny at t = 0."""
    abar_T = (1 - betas_T).cumprod(0)
    before_T = torch.cat([torch.ones_like(abar_T[:1]), abar_T[:-1]])
    variance_T = betas_T * (1 - before_T) / (1 - abar_T)
    variance_T[0] = variance_T[1]  # there is none at t = 0; its logarithm must exist
    tables = {
        "log_beta": betas_T.log(),
        "log_variance": variance_T.log(),
        "signal_scale": abar_T.sqrt(),
        "noise_scale": (1 - abar_T).sqrt(),
        "from_x_0": before_T.sqrt() * betas_T / (1 - abar_T),
        "from_x_t": (1 - betas_T).sqrt() * (1 - before_T) / (1 - abar_T),
    }
    return {name: table_T.float() for name, table_T in tables.items()}


def split_variance(prediction_BCHW: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The mean's prediction and, where the network learns variances, theirs."""
    if prediction_BCHW.shape[1] == channels:
        return prediction_BCHW, None
    return prediction_BCHW[:, :channels], prediction_BCHW[:, channels:]


def _log_likelihood_of_8_bits(x_BCHW: Tensor, mean_BCHW: Tensor, log_scale_BCHW: Tensor) -> Tensor:
    """log P of a normal's mass in the bin of width 2/255 around x; the outermost bins reach to infinity."""
    normal = torch.special.log_ndtr
    upper = (x_BCHW - mean_BCHW + 1 / 255) * (-log_scale_BCHW).exp()
    lower = (x_BCHW - mean_BCHW - 1 / 255) * (-log_scale_BCHW).exp()
    mass = (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12).log()
    # 8-bit values lie 2/255 apart, so 0.999 tells the outermost from all others.
    return torch.where(x_BCHW < -0.999, normal(upper), torch.where(x_BCHW > 0.999, normal(-lower), mass))


def _min_snr_weights(config: DiffusionConfig, alphas_cumprod_T: Tensor) -> Tensor:
    """(T,) weights by which the x_0 error counts min(SNR, gamma) times (Hang et al. 2023, arXiv:2303.09556).

    The x_0 error is the epsilon error over SNR, or the v error over SNR + 1.
    """
    if config.min_snr_gamma is None:
        return torch.ones_like(alphas_cumprod_T)
    snr_T = alphas_cumprod_T / (1 - alphas_cumprod_T)
    error_scale_T = snr_T if config.objective == "epsilon" else snr_T + 1
    return snr_T.clamp(max=config.min_snr_gamma) / error_scale_T

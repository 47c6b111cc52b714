"""The noising process and what the network predicts."""

from typing import Literal

from pydantic import Field, model_validator

from workloads.config.base import Real, StrictConfig, Whole


class DiffusionConfig(StrictConfig):
    """A discrete-time Gaussian diffusion (Ho et al. 2020, arXiv:2006.11239)."""

    num_timesteps: Whole = Field(1000, ge=2, le=1_000_000)
    """Training timesteps T. t = 0 is the least noisy."""

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """How beta_t rises, in diffusers' names. latent-diffusion's "linear" is diffusers' scaled_linear
    (linear in sqrt(beta)); DiT's is linear."""

    beta_start: Real = Field(1e-4, gt=0, lt=1)
    """beta_0; ignored by squaredcos_cap_v2."""

    beta_end: Real = Field(0.02, gt=0, lt=1)
    """beta_(T-1); ignored by squaredcos_cap_v2."""

    objective: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0
    (Salimans & Ho 2022, arXiv:2202.00512)."""

    min_snr_gamma: Real | None = Field(None, gt=0)
    """Weigh the loss by min(SNR, gamma) in x_0 terms (Hang et al. 2023, arXiv:2303.09556). None: no weighting."""

    @model_validator(mode="after")
    def _check_betas(self) -> "DiffusionConfig":
        if self.beta_start >= self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} must be below beta_end {self.beta_end}")
        return self

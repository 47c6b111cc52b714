"""The forward process and the objective against closed forms in float64."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.diffusion.process import DiffusionProcess, scheduler_fields

SCHEDULES = [
    DiffusionConfig(schedule="linear"),
    DiffusionConfig(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195),
    DiffusionConfig(schedule="squaredcos_cap_v2"),
    DiffusionConfig(schedule="squaredcos_cap_v2", num_timesteps=250),
]


def alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
    """abar_t in float64: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled), Nichol & Dhariwal 2021, Eq. 17."""
    if config.schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, config.num_timesteps)
    elif config.schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps) ** 2
    else:
        edges = np.cos((np.arange(config.num_timesteps + 1) / config.num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    return np.cumprod(1 - betas)


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: f"{config.schedule}-{config.num_timesteps}")
def test_the_schedule_is_the_published_one(config: DiffusionConfig) -> None:
    # diffusers multiplies up to 1000 float32 factors, each off by up to 6e-8.
    found = DiffusionProcess(config).alphas_cumprod_T.double().numpy()
    np.testing.assert_allclose(found, alphas_cumprod(config), rtol=2e-4)


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: f"{config.schedule}-{config.num_timesteps}")
def test_training_and_both_samplers_share_one_schedule(config: DiffusionConfig) -> None:
    trained = DiffusionProcess(config).alphas_cumprod_T
    for scheduler in (DDIMScheduler, DPMSolverMultistepScheduler):
        assert torch.equal(trained, scheduler(**scheduler_fields(config)).alphas_cumprod)


def some_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0_BCHW, noise_BCHW = torch.randn(2, 5, 2, 3, 4, generator=generator)
    return x0_BCHW, noise_BCHW, torch.tensor([0, 1, 500, 998, 999])


@pytest.mark.parametrize("config", SCHEDULES[:3], ids=lambda config: config.schedule)
def test_noise_and_velocity_follow_their_formulas(config: DiffusionConfig) -> None:
    x0, noise, t = some_batch()
    abar = torch.from_numpy(alphas_cumprod(config))[t].view(-1, 1, 1, 1)
    signal, spread = abar.sqrt(), (1 - abar).sqrt()
    process = DiffusionProcess(config.model_copy(update={"objective": "v_prediction"}))
    # rtol: 1 - abar loses digits in float32 where abar is close to 1.
    close = {"rtol": 2e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(process.add_noise(x0, noise, t), signal * x0 + spread * noise, **close)
    torch.testing.assert_close(process.target(x0, noise, t), signal * noise - spread * x0, **close)
    assert torch.equal(DiffusionProcess(config).target(x0, noise, t), noise)


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_makes_the_x0_error_count_min_snr_gamma_times(objective: str, gamma: float) -> None:
    """The weighted loss of a wrong prediction equals min(SNR, gamma) |x_0 - its x_0|^2, worked out in float64."""
    config = DiffusionConfig(schedule="squaredcos_cap_v2", objective=objective, min_snr_gamma=gamma)
    x0, noise, t = some_batch()
    process = DiffusionProcess(config)
    prediction = process.target(x0, noise, t) + 0.1 * torch.sin(7 * noise)
    abar = process.alphas_cumprod_T.double()[t].view(-1, 1, 1, 1)
    signal, spread = abar.sqrt(), (1 - abar).sqrt()
    x_t = signal * x0 + spread * noise
    if objective == "epsilon":
        x0_hat = (x_t - spread * prediction) / signal
    else:
        x0_hat = signal * x_t - spread * prediction
    snr = (abar / (1 - abar)).view(-1)
    expected = snr.clamp(max=gamma) * (x0 - x0_hat).square().mean(dim=(1, 2, 3))
    found = process.loss(prediction, x0, noise, t).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)  # float32 against 1 - abar of 4e-5 at t = 0
    assert not torch.allclose(process.loss(prediction, x0, noise, t, weighted=False).double(), expected, rtol=1e-2)


def test_without_min_snr_the_loss_is_the_plain_mean_square_of_each_image() -> None:
    x0, noise, t = some_batch()
    process = DiffusionProcess(DiffusionConfig())
    loss_B = process.loss(noise + torch.arange(5.0).view(-1, 1, 1, 1), x0, noise, t)
    torch.testing.assert_close(loss_B, torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0]), rtol=1e-5, atol=0)

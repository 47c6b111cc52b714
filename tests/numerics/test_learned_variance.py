"""The variational bound of learned variances, against torch.distributions in float64 and its own definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from workloads.config.diffusion import DiffusionConfig
from workloads.diffusion.process import DiffusionProcess, split_variance


def process(objective: str = "epsilon", num_timesteps: int = 1000) -> DiffusionProcess:
    made = DiffusionProcess(DiffusionConfig.model_validate({"objective": objective, "num_timesteps": num_timesteps}))
    made.alphas_cumprod_T = made.alphas_cumprod_T.double()
    made._scheduler.alphas_cumprod = made.alphas_cumprod_T
    return made


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (1, 2, 3, 3), generator=generator)  # pixels take 256 values
    return levels.double() / 127.5 - 1, torch.randn(1, 2, 3, 3, generator=generator, dtype=torch.float64)


def betas_of(made: DiffusionProcess) -> tuple[Tensor, Tensor, Tensor]:
    """beta_t, abar_t, abar_(t-1), from the schedule's definition."""
    config = made.config
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_timesteps, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    return betas, abar, torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [1, 2, 300, 999])
def test_the_bound_is_the_divergence_of_two_normals(objective: str, t: int) -> None:
    made = process(objective)
    betas, abar, before = betas_of(made)
    x0, noise = draw()
    x_t = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise
    wrong_noise, share = noise + 0.3, torch.linspace(-1, 1, 18, dtype=torch.float64).view(1, 2, 3, 3)
    guess = (x_t - (1 - abar[t]).sqrt() * wrong_noise) / abar[t].sqrt()
    prediction: Any = wrong_noise
    if objective == "v_prediction":
        prediction = abar[t].sqrt() * wrong_noise - (1 - abar[t]).sqrt() * guess
    variance = betas[t] * (1 - before[t]) / (1 - abar[t])

    def mean(x: Tensor) -> Tensor:  # Ho et al. 2020, Eq. 7
        first = before[t].sqrt() * betas[t] / (1 - abar[t]) * x
        return first + (1 - betas[t]).sqrt() * (1 - before[t]) / (1 - abar[t]) * x_t

    log_model = (share + 1) / 2 * betas[t].log() + (1 - share) / 2 * variance.log()
    expected = kl_divergence(Normal(mean(x0), variance.sqrt()), Normal(mean(guess), (log_model / 2).exp()))
    found = made.variational_bound(prediction, share, x0, x_t, torch.tensor([t]))
    assert found.item() == pytest.approx(expected.mean().item() / math.log(2), rel=1e-4)


def test_at_the_last_step_it_is_the_likelihood_of_8_bit_pixels() -> None:
    made = process()
    betas, abar, before = betas_of(made)
    x0, noise = draw()
    x0[0, 0, 0, 0], x0[0, 0, 0, 1] = -1, 1
    x_t = abar[0].sqrt() * x0 + (1 - abar[0]).sqrt() * noise
    wrong_noise, share = noise + 0.3, torch.zeros_like(x0)
    floor = betas[1] * (1 - before[1]) / (1 - abar[1])
    scale = (0.5 * betas[0].log() + 0.5 * floor.log()).mul(0.5).exp()
    model = Normal((x_t - (1 - abar[0]).sqrt() * wrong_noise) / abar[0].sqrt(), scale)
    total = 0.0
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)):
        place = (0, *index.tolist())
        x, one = x0[place], Normal(model.mean[place], scale)
        above = torch.tensor(1.0) if x > 0.999 else one.cdf(x + 1 / 255)
        below = torch.tensor(0.0) if x < -0.999 else one.cdf(x - 1 / 255)
        total -= math.log(max((above - below).item(), 1e-12)) / math.log(2) / 18
    found = made.variational_bound(wrong_noise, share, x0, x_t, torch.tensor([0]))
    assert found.item() == pytest.approx(total, rel=1e-3)


def test_the_bound_teaches_the_variance_and_not_the_mean() -> None:
    made = process()
    x0, noise = draw()
    prediction = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    t_B = torch.tensor([200])
    made.loss(prediction, x0, noise, t_B).sum().backward()
    mean, variance = split_variance(prediction.grad, 2)  # type: ignore[arg-type]
    plain = prediction.detach()[:, :2].clone().requires_grad_()
    made.loss(plain, x0, noise, t_B).sum().backward()
    torch.testing.assert_close(mean, plain.grad)
    assert variance is not None
    assert variance.abs().min() > 0


def test_unweighted_loss_is_the_mean_squared_error_alone() -> None:
    made = process()
    x0, noise = draw()
    both = torch.cat([noise + 0.5, torch.ones_like(noise)], 1)
    assert made.loss(both, x0, noise, torch.tensor([10]), weighted=False).item() == pytest.approx(0.25)

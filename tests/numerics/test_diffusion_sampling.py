"""Samplers against hand-written steps in float64, and against data whose best denoiser is known exactly."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import SamplingConfig
from workloads.diffusion.process import DiffusionProcess
from workloads.diffusion.sampling import initial_noise, sample, sampling_timesteps
from workloads.diffusion.schedulers import MIN_HALF_LOG_SNR
from workloads.errors import ConfigError

SHAPE = (1, 8, 8)
LINEAR = DiffusionConfig()
COSINE = DiffusionConfig(schedule="squaredcos_cap_v2")
LATENT = DiffusionConfig(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
V_COSINE = DiffusionConfig(schedule="squaredcos_cap_v2", objective="v_prediction")
PROCESSES = {"linear": LINEAR, "cosine": COSINE, "latent": LATENT, "v-cosine": V_COSINE}
every_process = pytest.mark.parametrize("diffusion", PROCESSES.values(), ids=PROCESSES.keys())
Predict = Callable[[Tensor, int, Tensor | None], Tensor]


def abars(diffusion: DiffusionConfig) -> list[float]:
    return DiffusionProcess(diffusion).alphas_cumprod_T.double().tolist()


def wavy(x: Tensor, timestep: int, _: Tensor | None = None) -> Tensor:
    """Some network: smooth, bounded, dependent on everything."""
    return 0.9 * x + 0.2 * torch.sin(3 * x + timestep / 100)


def to_x0_and_noise(diffusion: DiffusionConfig, output: Tensor, x: Tensor, abar: float) -> tuple[Tensor, Tensor]:
    signal, spread = math.sqrt(abar), math.sqrt(1 - abar)
    if diffusion.objective == "epsilon":
        return (x - spread * output) / signal, output
    return signal * x - spread * output, signal * output + spread * x


def noise_of_each_image(seeds: list[int], draws: int) -> Tensor:
    """(draws, B, C, H, W): the streams that sampling should read, one generator an image."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack(
        [torch.stack([torch.randn(SHAPE, generator=stream) for stream in streams]) for _ in range(draws)]
    )


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 300])  # 7 and 300 do not divide 1000
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@every_process
def test_ddim_is_equation_12(diffusion: DiffusionConfig, eta: float, num_steps: int) -> None:
    """Song et al. 2020, arXiv:2010.02502, Eqs. 12 and 16, in float64; after the last step abar is 1."""
    seeds, clip = [3, 4], num_steps == 7
    sampling = SamplingConfig(sampler="ddim", num_steps=num_steps, eta=eta)
    found = sample(wavy, shape_CHW=SHAPE, diffusion=diffusion, sampling=sampling, seeds=seeds, clip=clip)

    noise = noise_of_each_image(seeds, num_steps + 1).double()
    abar_T, x = abars(diffusion), noise[0]
    for step, (t, after) in enumerate(pairwise([*sampling_timesteps(diffusion, num_steps), None])):
        abar, abar_after = abar_T[t], 1.0 if after is None else abar_T[after]
        x0, epsilon = to_x0_and_noise(diffusion, wavy(x, t), x, abar)
        if clip:  # the noise is then what is left when the clipped x_0 is taken out of x_t
            x0 = x0.clamp(-1, 1)
            epsilon = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        sigma = eta * math.sqrt((1 - abar_after) / (1 - abar) * (1 - abar / abar_after))
        direction = math.sqrt(max(1 - abar_after - sigma**2, 0.0))
        x = math.sqrt(abar_after) * x0 + direction * epsilon + sigma * noise[step + 1]
    # float32 against float64; the first steps multiply rounding errors by up to 1/sqrt(abar) = 160.
    torch.testing.assert_close(found.double(), x, rtol=2e-3, atol=2e-3 * float(x.abs().max()))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 40])
@every_process
def test_dpm_solver_is_2m(diffusion: DiffusionConfig, num_steps: int, clip: bool) -> None:
    """Lu et al. 2022, arXiv:2211.01095, Algorithm 2, in float64; the last step, to sigma = 0, is first-order."""
    sampling = SamplingConfig(sampler="dpm++", num_steps=num_steps)
    found = sample(wavy, shape_CHW=SHAPE, diffusion=diffusion, sampling=sampling, seeds=[3, 4], clip=clip)

    abar_T, x = abars(diffusion), initial_noise(SHAPE, [3, 4]).double()
    earlier: tuple[Tensor, float] | None = None  # the last x_0 and the last step in half-log-SNR
    for t, after in pairwise([*sampling_timesteps(diffusion, num_steps), None]):
        x0, _ = to_x0_and_noise(diffusion, wavy(x, t), x, abar_T[t])
        x0 = x0.clamp(-1, 1) if clip else x0
        if after is None:
            x = x0
            break
        half_log_snr = [0.5 * math.log(abar_T[i] / (1 - abar_T[i])) for i in (t, after)]
        h = half_log_snr[1] - half_log_snr[0]
        blend = x0
        if earlier is not None:
            ratio = earlier[1] / h
            blend = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * earlier[0]
        x = math.sqrt((1 - abar_T[after]) / (1 - abar_T[t])) * x - math.sqrt(abar_T[after]) * math.expm1(-h) * blend
        earlier = (x0, h)
    torch.testing.assert_close(found.double(), x, rtol=2e-3, atol=2e-3 * float(x.abs().max()))


MU, S = 0.4, 0.5


def gaussian_denoiser(diffusion: DiffusionConfig) -> Predict:
    """The best possible prediction for data x_0 ~ N(MU, S^2): E[eps | x_t], or v of E[eps | x_t] and E[x_0 | x_t]."""
    abar_T = abars(diffusion)

    def denoise(x: Tensor, timestep: int, _: Tensor | None) -> Tensor:
        signal, spread = math.sqrt(abar_T[timestep]), math.sqrt(1 - abar_T[timestep])
        total = signal**2 * S**2 + spread**2
        epsilon = spread * (x.double() - signal * MU) / total
        x0 = MU + signal * S**2 * (x.double() - signal * MU) / total
        return (epsilon if diffusion.objective == "epsilon" else signal * epsilon - spread * x0).float()

    return denoise


def mean_and_deviation(diffusion: DiffusionConfig, sampler: str, num_steps: int) -> tuple[float, float]:
    """Exact, without sampling error: a deterministic sampler with that denoiser maps z to mean + deviation z."""
    sampling = SamplingConfig(sampler=sampler, num_steps=num_steps)
    x = sample(gaussian_denoiser(diffusion), shape_CHW=SHAPE, diffusion=diffusion, sampling=sampling, seeds=[0])
    z = initial_noise(SHAPE, [0]).double().flatten().numpy()
    deviation, mean = np.polyfit(z, x.double().flatten().numpy(), 1)
    np.testing.assert_allclose(x.double().flatten().numpy(), mean + deviation * z, atol=1e-3)
    return float(mean), float(deviation)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@every_process
def test_gaussian_data_comes_out_with_its_mean_and_deviation(diffusion: DiffusionConfig, sampler: str) -> None:
    """The error against the exact solution vanishes with the number of steps.

    That solution, of the probability-flow ODE from z at the first timestep, is MU + S (z - signal MU) / total: it
    misses MU by what little signal pure noise lacks (0.016 for latents, whose schedule ends early, else under 0.002).
    """
    errors = []
    for num_steps in (10, 40, 160):
        abar = abars(diffusion)[sampling_timesteps(diffusion, num_steps)[0]]
        total = math.sqrt(abar * S**2 + 1 - abar)
        mean, deviation = mean_and_deviation(diffusion, sampler, num_steps)
        errors.append(abs(mean - MU + S * math.sqrt(abar) * MU / total) + abs(deviation - S / total))
        assert abs(MU - mean) < 0.02 + errors[-1]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < max(0.5 * errors[1], 5e-4)  # below that, float32 and its 160-fold first step show
    assert errors[2] < (0.02 if sampler == "ddim" else 0.01)


@every_process
def test_gaussian_data_comes_out_right_with_ddpm_like_noise(diffusion: DiffusionConfig) -> None:
    means, deviations = [], []
    for num_steps in (50, 500):
        sampling = SamplingConfig(sampler="ddim", num_steps=num_steps, eta=1.0)
        x = sample(
            gaussian_denoiser(diffusion),
            shape_CHW=(1, 64, 64),
            diffusion=diffusion,
            sampling=sampling,
            seeds=[*range(8)],
        )
        means.append(float(x.mean()))
        deviations.append(float(x.std()))
    # 32,768 draws: standard error 0.003 of the mean, 0.4 % of the deviation.
    assert means[-1] == pytest.approx(MU, abs=0.012)
    assert deviations[-1] == pytest.approx(S, rel=0.03)
    assert abs(deviations[-1] - S) < 0.4 * abs(deviations[0] - S)


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(num_steps=5), SamplingConfig(num_steps=5, eta=1.0), SamplingConfig(sampler="dpm++", num_steps=5)],
)
def test_an_image_depends_on_its_seed_not_on_its_batch(sampling: SamplingConfig) -> None:
    def draw(seeds: list[int]) -> Tensor:
        return sample(wavy, shape_CHW=SHAPE, diffusion=COSINE, sampling=sampling, seeds=seeds)

    together = draw([7, 8, 9])
    assert torch.equal(draw([8])[0], together[1])
    assert torch.equal(draw([9, 7]), together[[2, 0]])
    assert not torch.equal(together[0], together[1])


def class_denoiser(calls: list[int]) -> Predict:
    def denoise(x: Tensor, timestep: int, labels: Tensor | None) -> Tensor:
        assert labels is not None
        calls.append(len(x))
        return wavy(x, timestep) + 0.1 * labels.view(-1, 1, 1, 1)

    return denoise


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_guidance_is_without_plus_scale_times_the_difference(scale: float, sampler: str) -> None:
    calls: list[int] = []
    settings = {"shape_CHW": SHAPE, "diffusion": COSINE, "seeds": [1, 2]}
    sampling = SamplingConfig(sampler=sampler, num_steps=4, guidance_scale=scale)
    labels = torch.tensor([3, 6])
    found = sample(class_denoiser(calls), **settings, sampling=sampling, labels_B=labels, null_label=10)

    def by_hand(x: Tensor, timestep: int, _: Tensor | None) -> Tensor:
        without, with_label = wavy(x, timestep) + 0.1 * 10, wavy(x, timestep) + 0.1 * labels.view(-1, 1, 1, 1)
        return without + scale * (with_label - without)

    expected = sample(by_hand, **settings, sampling=sampling.model_copy(update={"guidance_scale": 1.0}))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert calls == [2 if scale in (0, 1) else 4] * 4


def test_without_labels_every_image_has_no_class() -> None:
    labels_seen: list[Tensor] = []

    def denoise(x: Tensor, timestep: int, labels: Tensor | None) -> Tensor:
        assert labels is not None
        labels_seen.append(labels)
        return wavy(x, timestep)

    sampling = SamplingConfig(num_steps=1)
    sample(denoise, shape_CHW=SHAPE, diffusion=COSINE, sampling=sampling, seeds=[1, 2], null_label=10)
    assert labels_seen[0].tolist() == [10, 10]
    with pytest.raises(ConfigError, match=r"guidance_scale 2\.0"):
        sample(wavy, shape_CHW=SHAPE, diffusion=COSINE, sampling=SamplingConfig(guidance_scale=2.0), seeds=[1])


@pytest.mark.parametrize(
    ("diffusion", "num_steps"),
    [*((diffusion, steps) for diffusion in (COSINE, V_COSINE) for steps in (1, 2, 3, 20)), (COSINE, 1000)],
    ids=lambda value: value if isinstance(value, int) else value.objective,
)
@pytest.mark.parametrize("options", [{"eta": 0.0}, {"eta": 1.0}, {"sampler": "dpm++"}], ids=str)
def test_the_noisy_end_of_the_cosine_schedule_stays_finite(
    diffusion: DiffusionConfig, num_steps: int, options: dict[str, object]
) -> None:
    """At t = 999 abar is 2e-9: an error of 0.01 in epsilon is one of 200 in x_0."""

    def denoise(x: Tensor, timestep: int, _: Tensor | None) -> Tensor:
        return gaussian_denoiser(diffusion)(x, timestep, None) + 0.01 * torch.sin(50 * x)

    sampling = SamplingConfig(num_steps=num_steps, **options)
    for clip in (False, True)[: 1 if num_steps == 1000 else 2]:
        x = sample(denoise, shape_CHW=SHAPE, diffusion=diffusion, sampling=sampling, seeds=[0, 1], clip=clip)
        assert x.isfinite().all()
        assert not clip or x.abs().max() < 1.001
        # Unclipped, the cut at MIN_HALF_LOG_SNR keeps the error below 164 x 0.01 (all 1000 steps: nothing is cut).
        assert num_steps == 1000 or x.abs().max() < 1.7 + MU + 4 * S


@every_process
def test_timesteps_start_at_the_end_and_never_repeat(diffusion: DiffusionConfig) -> None:
    abar_T = abars(diffusion)
    for num_steps in range(1, 1001):
        timesteps = sampling_timesteps(diffusion, num_steps)
        assert len(timesteps) == num_steps
        assert all(a > b for a, b in pairwise(timesteps))
        assert timesteps[-1] >= 0
        assert 995 <= timesteps[0] <= 999
        abar = abar_T[timesteps[0]]
        if diffusion.objective == "epsilon" and num_steps < 900:
            assert 0.5 * math.log(abar / (1 - abar)) >= MIN_HALF_LOG_SNR
        else:
            assert timesteps[0] == 999 or diffusion.objective == "epsilon"
    assert sampling_timesteps(diffusion, 1000) == list(range(999, -1, -1))


def test_timesteps_are_diffusers_trailing_ones_where_steps_divide_the_whole() -> None:
    from diffusers import DDIMScheduler

    for num_steps in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000):
        scheduler = DDIMScheduler(timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps)
        assert sampling_timesteps(LINEAR, num_steps) == scheduler.timesteps.tolist()


def test_more_steps_than_timesteps_is_an_error() -> None:
    with pytest.raises(ConfigError, match="num_steps is 1001; it must be at most"):
        sampling_timesteps(LINEAR, 1001)

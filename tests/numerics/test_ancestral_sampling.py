"""Ancestral sampling with learned and fixed variances, as published, against the papers' equations in float64."""

import inspect
import math
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor

from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import OWN_SAMPLERS, VARIANCE_SAMPLERS, SamplingConfig
from workloads.config.models import DiTConfig
from workloads.diffusion.sampling import Denoiser, make_scheduler, sample
from workloads.errors import ConfigError
from workloads.models.build import build_model

SHAPE = (4, 6, 6)
SEEDS = [11, 12]
LABELS = torch.tensor([3, 7])
NULL = 10
LINEAR = DiffusionConfig()
COSINE = DiffusionConfig(schedule="squaredcos_cap_v2", objective="v_prediction")


def betas(diffusion: DiffusionConfig) -> list[float]:
    """Ho et al. 2020, Sec. 4; Nichol & Dhariwal 2021, Eq. 17, with their cap of 0.999."""
    num = diffusion.num_timesteps
    if diffusion.schedule == "linear":
        step = (diffusion.beta_end - diffusion.beta_start) / (num - 1)
        return [diffusion.beta_start + t * step for t in range(num)]
    signal = [math.cos((t / num + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(num + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(signal)]


def evenly(num_timesteps: int, num_steps: int) -> list[int]:
    """Nichol & Dhariwal 2021, Sec. 4: K evenly spaced real numbers between 1 and T, rounded; here from 0."""
    return [round(k * (num_timesteps - 1) / (num_steps - 1)) for k in range(num_steps)]


def network(x: Tensor, timestep: float, labels: Tensor | None) -> Tensor:
    """Smooth, bounded, dependent on everything: 4 channels of noise and 4 of variances, in the precision of x."""
    assert labels is not None
    shift = labels.view(-1, 1, 1, 1).to(x.dtype) / 10
    noise = 0.9 * x + 0.2 * torch.sin(3 * x + timestep / 100 + shift)
    return torch.cat([noise, torch.sin(5 * x - timestep / 70 + 2 * shift)], 1)


def noise_of_each_image(draws: int) -> Tensor:
    streams = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return torch.stack([torch.stack([torch.randn(SHAPE, generator=one) for one in streams]) for _ in range(draws)])


def by_the_papers(
    denoise: Denoiser, diffusion: DiffusionConfig, num_steps: int, *, learned: bool, scale: float, channels: int
) -> list[Tensor]:
    """x before every step and after the last, in float64."""
    abar_of, product = [], 1.0
    for beta in betas(diffusion):
        product *= 1 - beta
        abar_of.append(product)
    noise = noise_of_each_image(num_steps).double()
    taken = evenly(diffusion.num_timesteps, num_steps)
    x, path = noise[0], [noise[0]]
    for number, t in enumerate(reversed(taken)):
        k = num_steps - 1 - number
        abar, before = abar_of[t], abar_of[taken[k - 1]] if k > 0 else 1.0
        with_class = denoise(x, t, LABELS)
        without = denoise(x, t, torch.full_like(LABELS, NULL))
        predicted = with_class[:, :4].clone()
        # Ho & Salimans 2022, Eq. 6: (1 + w) with - w without, for w = scale - 1.
        predicted[:, :channels] = scale * with_class[:, :channels] + (1 - scale) * without[:, :channels]
        if diffusion.objective == "epsilon":
            x0 = (x - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)
        else:
            x0 = math.sqrt(abar) * x - math.sqrt(1 - abar) * predicted
        beta = 1 - abar / before  # Nichol & Dhariwal 2021, Eq. 19
        mean = math.sqrt(before) * beta / (1 - abar) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * x
        if k == 0:  # Ho et al. 2020, Algorithm 2: no noise in the last step
            x = mean
        else:
            small = beta * (1 - before) / (1 - abar)
            v = (with_class[:, 4:] + 1) / 2 if learned else torch.zeros_like(mean)
            variance = torch.exp(v * math.log(beta) + (1 - v) * math.log(small))  # Eq. 15
            x = mean + variance.sqrt() * noise[number + 1]
        path.append(x)
    return path


def ours(denoise: Denoiser, diffusion: DiffusionConfig, sampling: SamplingConfig) -> tuple[list[Tensor], list[float]]:
    """The same path, and the timesteps the network was called at."""
    path, timesteps = [], []

    def watched(x: Tensor, timestep: float, labels: Tensor | None) -> Tensor:
        path.append(x[: len(SEEDS)])
        timesteps.append(timestep)
        return denoise(x, timestep, labels)

    end = sample(
        watched,
        shape_CHW=SHAPE,
        diffusion=diffusion,
        sampling=sampling,
        seeds=SEEDS,
        labels_B=LABELS,
        null_label=NULL,
    )
    return [*path, end], timesteps


@pytest.mark.parametrize("num_steps", [250, 100, 50])
@pytest.mark.parametrize("variance", ["learned", "fixed"])
@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize("diffusion", [LINEAR, COSINE], ids=["linear", "v-cosine"])
def test_every_step_is_that_of_the_papers(
    diffusion: DiffusionConfig, channels: int | None, variance: str, num_steps: int
) -> None:
    sampling = SamplingConfig.model_validate(
        {"sampler": "ddpm", "num_steps": num_steps, "variance": variance}
        | {"guidance_scale": 1.5, "guidance_channels": channels}
    )
    found, timesteps = ours(network, diffusion, sampling)
    assert timesteps == evenly(1000, num_steps)[::-1]
    assert (timesteps[0], timesteps[-1]) == (999, 0)
    expected = by_the_papers(
        network, diffusion, num_steps, learned=variance == "learned", scale=1.5, channels=channels or 4
    )
    assert len(found) == len(expected) == num_steps + 1
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_a_transformer_is_sampled_so_with_its_null_class() -> None:
    torch.manual_seed(0)
    config = DiTConfig.model_validate({"hidden_size": 16, "depth": 2, "num_heads": 2, "variance": "learned"})
    model = build_model(config, channels=4, image_size=6, num_classes=10).eval()
    for parameter in model.parameters():  # its last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    exact = build_model(config, channels=4, image_size=6, num_classes=10).double().eval()
    exact.load_state_dict(model.state_dict())

    def denoise_by(it: torch.nn.Module) -> Denoiser:
        def denoise(x: Tensor, timestep: float, labels: Tensor | None) -> Tensor:
            with torch.inference_mode():
                output: Tensor = it(x, torch.full((len(x),), timestep), class_labels=labels).sample
            return output + torch.cat([0.9 * x, torch.zeros_like(x)], 1)  # noise has to be taken out

        return denoise

    sampling = SamplingConfig(sampler="ddpm", num_steps=50, guidance_scale=1.5, guidance_channels=3)
    found, _ = ours(denoise_by(model), LINEAR, sampling)
    expected = by_the_papers(denoise_by(exact), LINEAR, 50, learned=True, scale=1.5, channels=3)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_a_network_without_variances_gets_the_posteriors() -> None:
    def plain(x: Tensor, timestep: float, labels: Tensor | None) -> Tensor:
        return network(x, timestep, labels)[:, :4]

    without, _ = ours(plain, LINEAR, SamplingConfig(sampler="ddpm", num_steps=20))
    fixed, _ = ours(network, LINEAR, SamplingConfig(sampler="ddpm", num_steps=20, variance="fixed"))
    assert torch.equal(without[-1], fixed[-1])


def test_deterministic_samplers_leave_learned_variances_out() -> None:
    def plain(x: Tensor, timestep: float, labels: Tensor | None) -> Tensor:
        return network(x, timestep, labels)[:, :4]

    for sampler in ("ddim", "dpm++"):
        sampling = SamplingConfig(sampler=sampler, num_steps=5, guidance_scale=2, guidance_channels=3)
        assert torch.equal(ours(network, LINEAR, sampling)[0][-1], ours(plain, LINEAR, sampling)[0][-1])


NAMED = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and isinstance(getattr(diffusers, name), type)
    and issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)
    and not inspect.isabstract(getattr(diffusers, name))
)


@pytest.mark.parametrize("name", NAMED)
def test_any_scheduler_of_diffusers_samples_or_is_refused(name: str) -> None:
    """Where the best prediction is known (data N(0.4, 0.5^2)), images have its mean, whatever else is in the batch."""
    sampling = SamplingConfig(sampler=name, num_steps=20)
    try:
        make_scheduler(LINEAR, sampling)
    except ConfigError as refused:
        assert name in str(refused)
        return

    abar = torch.tensor([1 - beta for beta in betas(LINEAR)]).double().cumprod(0)

    def best(x: Tensor, timestep: float, _: Tensor | None) -> Tensor:
        low = math.floor(timestep)
        signal2 = float(abar[low] + (timestep - low) * (abar[min(low + 1, 999)] - abar[low]))
        signal, spread = math.sqrt(signal2), math.sqrt(1 - signal2)
        total = signal2 * 0.25 + spread**2
        return spread * (x - signal * 0.4) / total

    def draw(seeds: list[int]) -> Tensor:
        return sample(best, shape_CHW=(1, 16, 16), diffusion=LINEAR, sampling=sampling, seeds=seeds)

    together = draw([1, 2, 3, 4])
    assert together.mean().item() == pytest.approx(0.4, abs=0.12)
    assert 0.25 < together.std().item() < 0.75
    torch.testing.assert_close(draw([3])[0], together[2], rtol=1e-4, atol=1e-4)


def test_only_these_use_a_learned_variance() -> None:
    """Whether what the network says of variances changes the image."""

    def shares(share: float) -> Denoiser:
        return lambda x, *_: torch.cat([0.5 * x, torch.full_like(x, share)], 1)

    for name in ["ddpm", *NAMED]:
        try:
            make_scheduler(LINEAR, SamplingConfig(sampler=name, num_steps=4))
        except ConfigError:
            continue
        settings = {"shape_CHW": SHAPE, "diffusion": LINEAR, "seeds": SEEDS}
        sampling = SamplingConfig(sampler=name, num_steps=4)
        low, high = (sample(shares(share), **settings, sampling=sampling) for share in (-1.0, 1.0))
        assert torch.equal(low, high) == (name not in VARIANCE_SAMPLERS), name
    assert {*OWN_SAMPLERS, *NAMED} >= VARIANCE_SAMPLERS


def test_options_reach_the_scheduler_and_wrong_ones_are_refused() -> None:
    options = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
    as_ldm = SamplingConfig.model_validate({"sampler": "DDIMScheduler", "num_steps": 200, "eta": 1, "options": options})
    assert make_scheduler(LINEAR, as_ldm).timesteps.tolist() == list(range(996, 0, -5))
    for raw, said in (
        ({"sampler": "DDIMSheduler"}, "it must be ddim"),
        ({"sampler": "ddim", "options": {"steps_offset": 1}}, "steps_offset"),
        ({"sampler": "ddpm", "num_steps": 1}, "set 2 or more"),
        ({"sampler": "DDIMScheduler", "variance": "learned"}, "set the sampler to ddpm"),
        ({"sampler": "DDPMScheduler", "options": {"variance_type": "learned"}}, "variance: learned"),
    ):
        with pytest.raises(ValueError, match=said):
            SamplingConfig.model_validate(raw)
    for raw, said in (
        ({"sampler": "EulerDescreteScheduler"}, "did you mean EulerDiscreteScheduler"),
        ({"sampler": "FlowMatchEulerDiscreteScheduler"}, "given betas"),
        ({"sampler": "DDIMInverseScheduler"}, "from images to noise"),
        ({"sampler": "DDIMScheduler", "options": {"stride": 2}}, "stride, which is none of"),
        ({"sampler": "DDIMScheduler", "options": {"beta_start": 0.1}}, "beta_start, which is none of"),
        ({"sampler": "LCMScheduler", "num_steps": 60}, "LCMScheduler takes no 60 steps"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_scheduler(LINEAR, SamplingConfig.model_validate(raw))

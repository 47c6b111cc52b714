"""The weight average against its closed form, and the learning rate against its definition."""

import math

import pytest
import torch

from workloads.config import TrainingConfig
from workloads.training.ema import WeightAverage
from workloads.training.schedule import learning_rate


def test_after_one_half_life_half_of_the_old_value_remains() -> None:
    weight = torch.zeros(3, dtype=torch.float64)
    average = WeightAverage([weight], halflife_images=1000, rampup=None)
    weight.fill_(1.0)
    for step in range(1, 101):
        average.update(10, images_seen=10 * step)
    torch.testing.assert_close(average.tensors[0], torch.full_like(weight, 0.5))


def test_the_average_of_a_changing_weight_equals_the_explicit_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    weight = values[:1].clone()
    average = WeightAverage([weight], halflife_images=64, rampup=0.1)
    expected = values[0].item()
    for step in range(1, 50):
        weight.copy_(values[step])
        average.update(8, images_seen=8 * step)
        decay = 0.5 ** (8 / min(64.0, 0.1 * 8 * step))
        expected = decay * expected + (1 - decay) * values[step].item()
    assert average.tensors[0].item() == pytest.approx(expected, rel=1e-12)


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"images": 1000, "learning_rate": 0.01} | changes)


def test_warm_up_is_linear_from_zero_and_then_constant() -> None:
    warm = config(warmup_images=100)
    assert [learning_rate(warm, seen) for seen in (0, 50, 100, 1000)] == pytest.approx([0, 0.005, 0.01, 0.01])


def test_cosine_ends_at_zero_when_the_budget_is_used_up() -> None:
    cosine = config(warmup_images=200, lr_schedule="cosine")
    assert learning_rate(cosine, 600) == pytest.approx(0.005)
    assert learning_rate(cosine, 400) == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(cosine, 1000) == pytest.approx(0, abs=1e-18)
    assert learning_rate(cosine, 1100) == pytest.approx(0, abs=1e-18)

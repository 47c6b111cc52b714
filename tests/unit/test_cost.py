"""Costs against published numbers, counts by hand, and what a real forward pass keeps."""

import time
from itertools import pairwise
from typing import Any

import pytest
import torch

from workloads.config import TrainingConfig, load_config
from workloads.config.models import AnyModel, IUNetConfig, LDMUNetConfig
from workloads.config.strategy import Meme
from workloads.models.build import build_model
from workloads.models.cost import ModelCost, model_cost, training_memory_bytes

LDM_L = LDMUNetConfig(channels=224)
LDM_S = LDMUNetConfig(channels=128)
TINY = IUNetConfig(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    head_dim=4,
    norm_groups=4,
    mixer_levels=(1,),
    attention_share=("1/2",),
    pool_sizes=(2,),
    mlp_ratio=2,
)


def cost_of(config: AnyModel) -> ModelCost:
    return model_cost(config, channels=3, image_size=64, num_classes=None)


def experts_of(preset: str) -> list[AnyModel]:
    strategy = load_config(preset).strategy
    assert isinstance(strategy, Meme)
    return [expert.model for expert in strategy.experts]


def test_ldm_l_and_s_have_their_published_sizes() -> None:
    """FFHQ U-Net of latent-diffusion: 274.1 M; LDM-S 89.5 M; 96.0 G and 31.4 G multiply-adds in layers (MEME: x3)."""
    large, small = cost_of(LDM_L), cost_of(LDM_S)
    assert f"{large.num_parameters / 1e6:.1f}" == "274.1"
    assert f"{small.num_parameters / 1e6:.1f}" == "89.5"
    assert f"{(large.macs - large.attention_macs) / 1e9:.1f}" == "96.0"
    assert f"{(small.macs - small.attention_macs) / 1e9:.1f}" == "31.4"


def test_the_default_iunet_has_the_published_size() -> None:
    """iU-LDM-S: 82.6 M."""
    cost = cost_of(IUNetConfig(attention_share=("1/2", "2/3", "13/16")))
    assert cost.num_parameters == pytest.approx(82.6e6, rel=0.01)


def test_ffhq_experts_have_the_published_size_and_saving() -> None:
    """MEME: 82.9 M each, LDM-L's multiply-adds over an expert's 288.2 / 90.4 = 3.19; with and without attention."""
    large = cost_of(LDM_L)
    for config in experts_of("ffhq256-meme"):
        cost = cost_of(config)
        assert cost.num_parameters == pytest.approx(82.9e6, rel=0.01)
        assert large.macs / cost.macs >= 3.19
        assert (large.macs - large.attention_macs) / (cost.macs - cost.attention_macs) >= 3.19


@pytest.mark.parametrize("preset", ["ffhq256-meme", "cifar10-meme", "demo-meme"])
def test_experts_differ_as_meme_asks(preset: str) -> None:
    """Attention's share rises from level to level, and from the clean end to the noisy end."""
    shares = [config.attention_share for config in experts_of(preset) if isinstance(config, IUNetConfig)]
    assert len(set(shares)) == len(shares) == 4
    for share in shares:
        assert list(share) == sorted(share)
    for cleaner, noisier in pairwise(shares):
        assert all(a <= b for a, b in zip(cleaner, noisier, strict=True))


def test_cifar10_experts_are_of_the_size_the_preset_says() -> None:
    for config in experts_of("cifar10-meme"):
        cost = model_cost(config, channels=3, image_size=32, num_classes=None)
        assert cost.num_parameters == pytest.approx(14e6, rel=0.02)
        assert cost.macs == pytest.approx(3.3e9, rel=0.02)


def macs_by_hooks(model: Any, x: torch.Tensor, t: torch.Tensor) -> int:
    """Of convolutions and linear layers, from the shapes that pass through them."""
    total = 0

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() // output.shape[0] * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x, t)
    return total


@pytest.mark.parametrize(
    "config",
    [TINY, LDMUNetConfig(**TINY.model_dump(include=set(LDMUNetConfig.model_fields) - {"kind"}))],
    ids=["iunet", "ldm"],
)
def test_a_real_forward_pass_does_and_keeps_what_was_counted(config: AnyModel) -> None:
    model: Any = build_model(config, channels=1, image_size=8, num_classes=None)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    cost = model_cost(config, channels=1, image_size=8, num_classes=None)
    assert cost.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.macs - cost.attention_macs == macs_by_hooks(model, x, t)
    # Query-key and weights-value: 2 N^2 C. Level 1 has 4 x 4 = 16 positions (4 when pooled) and 16 channels.
    ordinary = 2 * 16**2 * 16
    in_encoder = 2 * 4**2 * 8 if config.kind == "iunet" else ordinary
    assert cost.attention_macs == in_encoder + 3 * ordinary  # encoder, middle, two in the decoder

    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x, t).sample
    assert output.requires_grad
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)
    # Kernels on the CPU and on a GPU keep slightly different statistics and layouts.
    assert cost.activation_bytes == pytest.approx(found, rel=0.1)


def test_training_memory_is_the_sum_of_its_parts() -> None:
    def estimate(**options: Any) -> int:
        training = TrainingConfig(images=1, batch_size=4, **options)
        return training_memory_bytes(TINY, training, channels=1, image_size=8, num_classes=None)

    cost = model_cost(TINY, channels=1, image_size=8, num_classes=None)
    # Weights, gradients, two moments of Adam, weight average.
    assert estimate() == 5 * 4 * cost.num_parameters + 4 * cost.activation_bytes
    assert estimate() - estimate(ema_halflife_images=None) == 4 * cost.num_parameters
    assert 4 * 4 * cost.num_parameters < estimate(precision="bf16") < estimate() + 2 * cost.num_parameters


def test_planning_a_thousand_experts_of_few_architectures_is_fast() -> None:
    configs = experts_of("ffhq256-meme")
    start = time.process_time()
    for _ in range(250):
        for config in configs:
            cost_of(config.model_copy())  # equal, not the same object
    assert time.process_time() - start < 2


def test_classes_and_image_size_count() -> None:
    plain = model_cost(TINY, channels=1, image_size=8, num_classes=None)
    classes = model_cost(TINY, channels=1, image_size=8, num_classes=10)
    larger = model_cost(TINY, channels=1, image_size=16, num_classes=None)
    assert classes.num_parameters - plain.num_parameters == 11 * 32  # ten classes and "no class", embedding of 4 x 8
    assert larger.num_parameters == plain.num_parameters
    assert 3.9 * plain.macs < larger.macs

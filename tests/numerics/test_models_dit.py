"""The diffusion transformer: published sizes, and equality with diffusers' independent implementation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from workloads.config.models import DiTConfig
from workloads.models.build import build_model, load_model
from workloads.models.cost import model_cost
from workloads.models.dit import to_diffusers


def config(**changes: Any) -> DiTConfig:
    return DiTConfig.model_validate({"hidden_size": 48, "depth": 3, "num_heads": 4, **changes})


def randomised(seed: int = 0, *, num_classes: int | None = 5, channels: int = 3, **changes: Any) -> Any:
    """No zero-initialised layer, so that every part shows in the output."""
    torch.manual_seed(seed)
    model = build_model(config(**changes), channels=channels, image_size=16, num_classes=num_classes)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(("size", "millions"), [("S", 32.96), ("B", 130.51), ("L", 458.10), ("XL", 675.13)])
def test_sizes_are_the_published_ones(size: str, millions: float) -> None:
    published = DiTConfig.model_validate({"size": size, "variance": "learned"})
    cost = model_cost(published, channels=4, image_size=32, num_classes=1000)
    assert round(cost.num_parameters / 1e6, 2) == millions


@pytest.mark.parametrize(("size", "patch", "giga"), [("S", 2, 6.06), ("B", 2, 23.01), ("L", 2, 80.71), ("S", 4, 1.41)])
def test_multiply_adds_are_the_published_ones(size: str, patch: int, giga: float) -> None:
    """The DiT paper's "Gflops" (Table 4) are multiply-adds; the fvcore counter behind them rounds differently."""
    published = DiTConfig.model_validate({"size": size, "patch_size": patch, "variance": "learned"})
    cost = model_cost(published, channels=4, image_size=32, num_classes=1000)
    assert cost.macs / 1e9 == pytest.approx(giga, rel=0.005)


@pytest.mark.parametrize("changes", [{}, {"variance": "learned"}, {"patch_size": 4}, {"patch_size": 8}])
def test_diffusers_computes_the_same(changes: dict[str, Any]) -> None:
    model = randomised(**changes)
    other = to_diffusers(model)
    x_BCHW, t_B, labels_B = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, 4, 5])
    with torch.no_grad():
        ours = model(x_BCHW, t_B, class_labels=labels_B).sample
        theirs = other(x_BCHW, t_B, class_labels=labels_B).sample
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_diffusers_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="frequency_shift 0"):
        to_diffusers(randomised(frequency_shift=0))
    with pytest.raises(ValueError, match="None classes"):
        to_diffusers(randomised(num_classes=None))


@pytest.mark.parametrize(("shift", "divisor"), [(0, 128), (1, 127)])
def test_timestep_frequencies(shift: int, divisor: int) -> None:
    embedded_BD = randomised(frequency_shift=shift).t_embedder.frequencies(torch.tensor([777.0]))
    angles = 777.0 * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / divisor)
    expected = torch.cat([angles.cos(), angles.sin()])
    torch.testing.assert_close(embedded_BD[0].double(), expected, rtol=0, atol=2e-4)


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    model = randomised(patch_size=4)
    for row in range(4):
        for column in range(4):
            rates = 10_000.0 ** (-torch.arange(12, dtype=torch.float64) / 12)
            parts = [(column * rates).sin(), (column * rates).cos(), (row * rates).sin(), (row * rates).cos()]
            found = model.pos_embed[0, 4 * row + column].double()
            torch.testing.assert_close(found, torch.cat(parts), rtol=0, atol=1e-6)


def test_a_fresh_network_predicts_zero_and_ignores_nothing_else() -> None:
    torch.manual_seed(0)
    model = build_model(config(), channels=3, image_size=16, num_classes=None)
    output = model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2])).sample
    assert torch.equal(output, torch.zeros(2, 3, 16, 16))
    weights = model.get_parameter("blocks.0.mlp.fc1.weight")
    assert weights.std().item() == pytest.approx((2 / (48 + 192)) ** 0.5, rel=0.05)  # Xavier: var = 2 / (in + out)


def test_activation_checkpointing_changes_no_gradient() -> None:
    model = randomised().train()
    x_BCHW, t_B, labels_B = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.tensor([1, 5])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x_BCHW, t_B, class_labels=labels_B).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    plain = gradients()
    model.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(), plain)


def test_a_saved_network_loads_again(tmp_path: Path) -> None:
    model = randomised(variance="learned")
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


@pytest.mark.parametrize(
    ("model", "used", "not_used"),
    [
        (
            "DiTConfig(hidden_size=8, depth=1, num_heads=1)",
            {"timm"},
            {"scipy", "diffusers.models.unets.unet_2d", "diffusers.models.transformers"},
        ),
        (
            "LDMUNetConfig()",
            {"diffusers.models.unets.unet_2d"},
            {"timm", "scipy", "diffusers.models.unets", "diffusers.models.transformers"},
        ),
    ],
)
def test_a_process_imports_only_what_its_network_needs(model: str, used: set[str], not_used: set[str]) -> None:
    """Every process pays for them before its first step: all networks of diffusers, and SciPy with them, take 1 s."""
    code = f"""import sys, workloads.training.job, workloads.ensemble
from workloads.config.models import DiTConfig, LDMUNetConfig
from workloads.models.build import build_model
build_model({model}, channels=1, image_size=32, num_classes=None)
print(*sys.modules)"""
    imported = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert used <= imported
    assert not imported & (not_used | {"ray", "mlflow"})

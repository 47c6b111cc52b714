"""FD-DINOv2's network against its equations in float64, and what is said where its weights are not."""

import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError
from workloads.evaluation.dinov2 import ARCHITECTURE, LAYER, DINOv2Extractor, load_network, resampled
from workloads.evaluation.score import check_protocol
from workloads.files import sha256_file

WIDTH, NUM_HEADS, DEPTH = 1024, 16, 2
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of two of the 24 blocks, in Meta's names and shapes: 37 x 37 positions."""
    torch.manual_seed(0)
    network = timm.create_model(ARCHITECTURE, img_size=518, num_classes=0, depth=DEPTH)
    generator = torch.Generator().manual_seed(1)
    state = {key: 0.05 * torch.randn(one.shape, generator=generator) for key, one in network.state_dict().items()}
    return state | {"mask_token": torch.zeros(1, WIDTH)}


def norm(x_ND: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    away_ND = x_ND - x_ND.mean(1, keepdim=True)
    scale_ND = (away_ND.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return away_ND / scale_ND * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x_ND: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x_ND @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def class_token(pixels_CHW: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A vision transformer with LayerScale (arXiv:2304.07193): patches, attention and MLP, each scaled and added."""
    patches = pixels_CHW.unfold(1, 14, 14).unfold(2, 14, 14).permute(1, 2, 0, 3, 4).reshape(256, -1)
    kernel = state["patch_embed.proj.weight"].flatten(1)
    tokens = torch.cat([state["cls_token"][0], patches @ kernel.T + state["patch_embed.proj.bias"]])
    x_ND = tokens + resampled(state["pos_embed"])[0]
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        heads = linear(norm(x_ND, state, f"{block}.norm1"), state, f"{block}.attn.qkv").view(257, 3, NUM_HEADS, 64)
        q, k, v = heads.permute(1, 2, 0, 3)
        mixed = (q @ k.mT / 8).softmax(-1) @ v
        out_ND = linear(mixed.permute(1, 0, 2).reshape(257, WIDTH), state, f"{block}.attn.proj")
        x_ND = x_ND + state[f"{block}.ls1.gamma"] * out_ND
        hidden = linear(norm(x_ND, state, f"{block}.norm2"), state, f"{block}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x_ND = x_ND + state[f"{block}.ls2.gamma"] * linear(hidden, state, f"{block}.mlp.fc2")
    return norm(x_ND, state, "norm")[0]


def test_features_are_the_class_token_of_the_equations(weights: dict[str, Tensor]) -> None:
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    extractor = DINOv2Extractor("any", [LAYER], weights=weights, depth=DEPTH)
    state = {key: tensor.double() for key, tensor in weights.items()}
    pixels = (images.double() / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]
    expected = torch.stack([class_token(one, state) for one in pixels])
    (found,) = extractor(images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    (exact,) = extractor.double()(images)
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-6)


def test_positions_are_interpolated_as_the_cubic_kernel_says() -> None:
    """Keys' kernel with a = -0.75 at (i + 0.5) 37 / 16.1 - 0.5, edges repeated, along one axis."""
    grid = torch.randn(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.cat([torch.zeros(1, 1, 1).double(), grid.repeat_interleave(37).view(1, -1, 1)], dim=1)
    found = resampled(positions)[0, 1:, 0].view(16, 16)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    for index in range(16):
        place = (index + 0.5) * 37 / 16.1 - 0.5
        near = range(math.floor(place) - 1, math.floor(place) + 3)
        expected = sum(float(grid[min(max(at, 0), 36)]) * kernel(place - at) for at in near)
        assert found[index].tolist() == pytest.approx([expected] * 16, abs=1e-9)


def test_small_images_are_resized_as_pillow_resizes_floats(weights: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    seen: list[Tensor] = []
    extractor = DINOv2Extractor("any", [LAYER], weights=weights, depth=DEPTH)
    extractor.network.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    extractor(images)
    channels = [Image.fromarray(one.float().numpy()).resize((224, 224), Image.Resampling.BICUBIC) for one in images[0]]
    expected = torch.stack([torch.tensor(list(one.getdata())).view(224, 224).clamp(0, 255) for one in channels])
    found = (seen[0][0] * DEVIATION[:, None, None] + MEAN[:, None, None]) * 255
    assert F.l1_loss(found, expected) < 0.01


def protocol(**changes: object) -> ProtocolConfig:
    return ProtocolConfig.model_validate({"name": "fd-dinov2-50k"} | changes)


def test_weights_that_are_not_there_are_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMEME_DINOV2", raising=False)
    with pytest.raises(ConfigError, match=r"fd-dinov2-50k needs the DINOv2 ViT-L/14 weights: set evaluation\.dinov2_w"):
        check_protocol(protocol())
    with pytest.raises(ConfigError, match="does not exist"):
        check_protocol(protocol(dinov2_weights=tmp_path / "absent.pth"))
    file = tmp_path / "other.pth"
    torch.save({"pos_embed": torch.zeros(1, 257, 1024)}, file)
    with pytest.raises(ConfigError, match="sha256 is None; set it"):
        check_protocol(protocol(dinov2_weights=file))
    check_protocol(protocol(dinov2_weights=file, dinov2_sha256=sha256_file(file)))
    with pytest.raises(ConfigError, match="does not hold DINOv2 ViT-L/14 in Meta's names"):
        load_network(file)
    with pytest.raises(ValueError, match="dinov2 has no classifier"):
        protocol(metrics=["inception_score"])

"""DINOv2 ViT-L/14, whose features tell images apart more as people do (FD-DINOv2; Stein et al. 2023, arXiv:2306.04675).

The weights are Meta's dinov2_vitl14_pretrain.pth (Oquab et al. 2023, arXiv:2304.07193; Apache-2.0), which is never
downloaded: a file and its SHA-256 name it. The network is timm's.
"""

import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity import FeatureExtractorBase

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError
from workloads.evaluation.inception import read_tensors
from workloads.files import sha256_file

# Axes: B batch, C channels, H height, W width, D features.

WEIGHTS_VARIABLE = "REMEME_DINOV2"
ARCHITECTURE = "vit_large_patch14_dinov2"
NUM_FEATURES = 1024
LAYER = "cls"
IMAGE_SIZE, PATCH_SIZE = 224, 14

OFFSET = 0.1
"""What Meta adds to the number of patches before positions are interpolated."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by channel."""


def find_weights(protocol: ProtocolConfig) -> Path:
    """The file the protocol means, its SHA-256 checked. ConfigError if it is absent or another file."""
    named, origin = protocol.dinov2_weights, "evaluation.dinov2_weights"
    if named is None and os.environ.get(WEIGHTS_VARIABLE):
        named, origin = Path(os.environ[WEIGHTS_VARIABLE]), WEIGHTS_VARIABLE
    if named is None:
        raise ConfigError(
            f"protocol {protocol.name} needs the DINOv2 ViT-L/14 weights: set evaluation.dinov2_weights or "
            f"{WEIGHTS_VARIABLE} to dinov2_vitl14_pretrain.pth, and evaluation.dinov2_sha256 to its SHA-256"
        )
    path = named.expanduser()
    if not path.is_file():
        raise ConfigError(f"{origin} {path} does not exist; get dinov2_vitl14_pretrain.pth and name it there")
    found = sha256_file(path)
    if found != protocol.dinov2_sha256:
        raise ConfigError(
            f"{origin} {path} has SHA-256 {found}, but evaluation.dinov2_sha256 is {protocol.dinov2_sha256}; set it to "
            "that value if this is the file that is meant"
        )
    return path


class DINOv2Extractor(FeatureExtractorBase):  # type: ignore[misc]
    """The class token behind the last norm, of images brought to 224 x 224, for torch-fidelity.

    weights: tensors in Meta's names. architecture: what timm is told besides, such as depth.
    """

    def __init__(self, name: str, features_list: list[str], *, weights: dict[str, Tensor], **architecture: Any) -> None:
        super().__init__(name, features_list)
        self.network = timm.create_model(ARCHITECTURE, img_size=IMAGE_SIZE, num_classes=0, **architecture)
        used = {key: tensor for key, tensor in weights.items() if key != "mask_token"}  # of training only
        self.network.load_state_dict(used | {"pos_embed": resampled(used["pos_embed"])})
        self.requires_grad_(False)
        self.eval()

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) to float32 (B, 1024)."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        dtype = self.network.pos_embed.dtype
        resized = F.interpolate(images_BCHW.to(dtype), size, mode="bicubic", align_corners=False, antialias=True)
        mean, deviation = (torch.tensor(one, dtype=dtype, device=resized.device) for one in (MEAN, DEVIATION))
        pixels = (resized.clamp(0, 255) / 255 - mean[:, None, None]) / deviation[:, None, None]
        return (self.network.forward_features(pixels)[:, 0],)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER,)


def resampled(positions_1ND: Tensor) -> Tensor:
    """Positions of 37 x 37 patches, and the class token's, at 16 x 16, as Meta's network interpolates them.

    timm would, like a picture, antialias them, which gives other features.
    """
    old, new = round((positions_1ND.shape[1] - 1) ** 0.5), IMAGE_SIZE // PATCH_SIZE
    if old == new:
        return positions_1ND
    grid = positions_1ND[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (new + OFFSET) / old
    found = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions_1ND[:, :1], found.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def load_network(path: Path) -> DINOv2Extractor:
    """ConfigError unless the file holds the network's tensors."""
    try:
        return DINOv2Extractor("dinov2-vit-l-14", [LAYER], weights=read_tensors(path))
    except (RuntimeError, KeyError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} does not hold DINOv2 ViT-L/14 in Meta's names: {problem}") from None

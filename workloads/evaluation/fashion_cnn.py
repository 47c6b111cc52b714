"""A small Fashion-MNIST classifier whose features score the embedded demo without any download."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Axes: B batch, C channels, H height, W width, D features, K classes.

IMAGE_SIZE = 28
NUM_FEATURES = 128
NUM_CLASSES = 10


def to_grey(images_BCHW: Tensor) -> Tensor:
    """uint8 images of any size, grey or colour, as float32 (B, 1, 28, 28) in [-1, 1].

    Colour is averaged; other sizes are resized bilinearly with antialiasing. ValueError for any other input.
    """
    if images_BCHW.dtype != torch.uint8 or images_BCHW.ndim != 4 or images_BCHW.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images_BCHW.dtype} of shape {tuple(images_BCHW.shape)}; "
            "they must be uint8 (B, C, H, W) with 1 or 3 channels"
        )
    grey_B1HW = images_BCHW.float().mean(dim=1, keepdim=True)
    if grey_B1HW.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
        grey_B1HW = F.interpolate(grey_B1HW, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return grey_B1HW / 127.5 - 1


class FashionCNN(nn.Module):
    """Two residual stages and global average pooling: 0.13 M parameters, 9.5 M multiply-adds per image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(1, 16), nn.ReLU(), _conv(16, 32, stride=2), nn.ReLU())
        self.stage1 = _residual_branch(32)
        self.down = nn.Sequential(_conv(32, 64, stride=2), nn.ReLU())
        self.stage2 = _residual_branch(64)
        self.expand = nn.Sequential(_conv(64, NUM_FEATURES, kernel_size=1), nn.ReLU())
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, grey_B1HW: Tensor) -> Tensor:
        """What the classifier sees of an image: (B, D)."""
        x_BCHW = self.stem(grey_B1HW)
        x_BCHW = self.down(F.relu(x_BCHW + self.stage1(x_BCHW)))
        x_BCHW = self.expand(F.relu(x_BCHW + self.stage2(x_BCHW)))
        features_BD: Tensor = x_BCHW.mean(dim=(2, 3))
        return features_BD

    def forward(self, grey_B1HW: Tensor) -> Tensor:
        """Class logits (B, K)."""
        logits_BK: Tensor = self.head(self.features(grey_B1HW))
        return logits_BK


def _conv(num_in: int, num_out: int, *, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(num_in, num_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_out))


def _residual_branch(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

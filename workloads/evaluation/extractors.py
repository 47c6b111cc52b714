"""The networks whose features are compared, with verified weights."""

import hashlib
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError
from workloads.evaluation import dinov2
from workloads.evaluation.fashion_cnn import NUM_FEATURES, FashionCNN, to_grey
from workloads.evaluation.inception import find_weights, read_weights
from workloads.files import sha256_file

ASSETS = Path(__file__).parent / "assets"
FASHION_WEIGHTS = ASSETS / "fashion-cnn.safetensors"
FASHION_CARD = ASSETS / "fashion-cnn.json"
FASHION_NAME = "fashion-cnn"


@dataclass(frozen=True)
class Extractor:
    """A network that turns uint8 images (B, C, H, W) into features (B, D), in torch-fidelity's form."""

    name: str
    module: FeatureExtractorBase
    layer: str
    """torch-fidelity's name of the features."""

    logits_layer: str | None
    """torch-fidelity's name of the class scores, for the Inception Score; None where there are none."""

    weights_sha256: str
    """Identifies the weights: of the file for fashion-cnn, of the tensors for Inception, which comes in many files."""

    resize: str
    """How images reach the network's input size."""

    score_name: str

    num_features: int

    spatial_layer: str | None = None
    """torch-fidelity's (or our) name of the features of sFID, where they were asked for."""

    @property
    def layers(self) -> tuple[str, ...]:
        """What the network returns, in this order."""
        return tuple(name for name in (self.layer, self.logits_layer, self.spatial_layer) if name is not None)

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of the protocol."""
        return {
            "name": self.name,
            "layer": self.layer,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "dtype": "float32",
        }


class FashionCNNExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Features of the Fashion-MNIST classifier in this package, for torch-fidelity."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        check_fashion_weights()
        self.network = FashionCNN()
        self.network.load_state_dict(load_file(FASHION_WEIGHTS))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        features_BD = self.network.features(to_grey(images_BCHW))
        by_name = {str(NUM_FEATURES): features_BD, "logits": self.network.head(features_BD)}
        return tuple(by_name[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(NUM_FEATURES), "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(_: str) -> str:
        return str(NUM_FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros((1, 1, 28, 28), dtype=torch.uint8)


if FASHION_NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(FASHION_NAME, FashionCNNExtractor)


def check_fashion_weights() -> str:
    """SHA-256 of the weights in the package. Raises ConfigError if they are missing or damaged."""
    expected: str = json.loads(FASHION_CARD.read_text())["weights_sha256"]
    if not FASHION_WEIGHTS.is_file() or sha256_file(FASHION_WEIGHTS) != expected:
        raise ConfigError(f"{FASHION_WEIGHTS} is missing or damaged; install rememe again")
    return expected


def load_fashion_cnn(_: ProtocolConfig) -> Extractor:
    layer = str(NUM_FEATURES)
    return Extractor(
        name=FASHION_NAME,
        module=FashionCNNExtractor(FASHION_NAME, [layer, "logits"]),
        layer=layer,
        logits_layer="logits",
        weights_sha256=check_fashion_weights(),
        resize="channel mean, antialiased bilinear to 28 x 28",
        score_name="fd-fashion-cnn",
        num_features=NUM_FEATURES,
    )


NUM_INCEPTION_FEATURES = 2048
SPATIAL = "spatial"
NUM_SPATIAL_CHANNELS, SPATIAL_SIZE = 7, 17
NUM_SPATIAL_FEATURES = NUM_SPATIAL_CHANNELS * SPATIAL_SIZE**2


class InceptionExtractor(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's Inception, with two more ways to use it: Clean-FID's resizing, and sFID's features.

    sFID (Nash et al. 2021, arXiv:2103.03841) takes the first 7 channels of the 17 x 17 map that ADM's evaluator calls
    mixed_6/conv, in the order height, width, channel.
    """

    def __init__(self, name: str, features_list: list[str], *, clean: bool, **options: Any) -> None:
        super().__init__(name, [layer for layer in features_list if layer != SPATIAL], **options)
        self._asked = features_list
        self._now = threading.local()  # batches go through in several threads at once
        if clean:
            self.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (clean_resized(self._now.images),))
        if SPATIAL in features_list:
            self.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        self._now.images = images_BCHW
        found = dict(zip(self.features_list, super().forward(images_BCHW), strict=True))
        return tuple(self._now.spatial if name == SPATIAL else found[name] for name in self._asked)

    def _keep_spatial(self, _module: object, _inputs: object, output_BCHW: Tensor) -> None:
        first_BHWC = output_BCHW[:, :NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        self._now.spatial = first_BHWC.flatten(1).float()


def clean_resized(images_BCHW: Tensor) -> Tensor:
    """What Inception takes, (B, 3, 299, 299) about [-1, 1]: resized as Pillow resizes floating point, bicubic and
    antialiased, and not rounded (Parmar et al. 2022, arXiv:2104.11222).
    """
    side = InceptionExtractor.INPUT_IMAGE_SIZE
    resized = torch.nn.functional.interpolate(
        images_BCHW.float(), (side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return (resized.clamp(0, 255) - 128) / 128


def load_inception(protocol: ProtocolConfig) -> Extractor:
    path, is_clean = find_weights(protocol), protocol.resize == "clean"
    spatial = [SPATIAL] if "sfid" in protocol.metrics else []
    # torch-fidelity unpickles whatever it is given: give it bytes written here, from tensors read safely.
    buffer = io.BytesIO()
    torch.save(read_weights(path), buffer)
    buffer.seek(0)
    try:
        module = InceptionExtractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased", *spatial],
            clean=is_clean,
            feature_extractor_weights_path=buffer,
        )
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} does not hold the FID Inception network in torch-fidelity's names: {problem}"
        ) from None
    return Extractor(
        name="inception-v3-2015-12-05",
        module=module,
        layer="2048",
        logits_layer="logits_unbiased",
        weights_sha256=tensors_sha256(module.state_dict()),
        resize="antialiased bicubic to 299 x 299, not rounded" if is_clean else "TensorFlow 1 bilinear to 299 x 299",
        score_name="clean-fid" if is_clean else "fid",
        num_features=NUM_INCEPTION_FEATURES,
        spatial_layer=SPATIAL if spatial else None,
    )


def tensors_sha256(state: dict[str, Tensor]) -> str:
    """Of every tensor that can change the features, whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(state[name].shape)}".encode())
            digest.update(state[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Kind(NamedTuple):
    num_features: int
    check: Callable[[ProtocolConfig], object]
    """Quick; raises ConfigError if the weights are absent or wrong."""

    load: Callable[[ProtocolConfig], Extractor]


def load_dinov2(protocol: ProtocolConfig) -> Extractor:
    module = dinov2.load_network(dinov2.find_weights(protocol))
    return Extractor(
        name="dinov2-vit-l-14",
        module=module,
        layer=dinov2.LAYER,
        logits_layer=None,
        weights_sha256=tensors_sha256(module.state_dict()),
        resize="antialiased bicubic to 224 x 224, not rounded",
        score_name="fd-dinov2",
        num_features=dinov2.NUM_FEATURES,
    )


EXTRACTORS = {
    "inception": _Kind(NUM_INCEPTION_FEATURES, find_weights, load_inception),
    "dinov2": _Kind(dinov2.NUM_FEATURES, dinov2.find_weights, load_dinov2),
    FASHION_NAME: _Kind(NUM_FEATURES, lambda _: check_fashion_weights(), load_fashion_cnn),
}
"""By ProtocolConfig.extractor."""


def check_extractor(protocol: ProtocolConfig) -> None:
    """Raise ConfigError unless the protocol's feature network is here with the right weights; loads nothing."""
    EXTRACTORS[protocol.extractor].check(protocol)


def load_extractor(protocol: ProtocolConfig) -> Extractor:
    """The protocol's feature network, on the CPU. Raises ConfigError if its weights are absent or wrong."""
    return EXTRACTORS[protocol.extractor].load(protocol)

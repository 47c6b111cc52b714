"""Weights to start from: a finished run of one network, an expert's directory, or a published file."""

import json
import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workloads.config.job import InitialWeights
from workloads.config.models import AnyModel, DiTConfig
from workloads.errors import ConfigError
from workloads.files import sha256_file
from workloads.models.build import WEIGHTS, build_model
from workloads.models.growth import is_remix
from workloads.models.remix import REMIX_WEIGHTS
from workloads.places import EnsembleDir, JobDir, RunDir

HERE = Path()
JOB, ENSEMBLE, RUN = JobDir(HERE), EnsembleDir(HERE), RunDir(HERE)
PLACES = (
    *(folder / WEIGHTS for folder in (HERE, JOB.expert, ENSEMBLE.expert(0), RUN.ensemble.expert(0))),
    *(folder / REMIX_WEIGHTS for folder in (HERE, JOB.remix, RUN.ensemble.remix)),
)
"""Where a directory may hold the weights of its one network, or of its remix, seen from there."""

PICKLE_SUFFIXES = {".pt", ".pth", ".bin"}
WRAPPERS = ("ema", "model", "state_dict")
"""Keys under which published checkpoints keep their state dict; the average is what the others are judged by."""


def resolve_initial(path: Path) -> InitialWeights:
    """The file behind initial_weights, and its SHA-256. ConfigError if there is none, or if there are several."""
    if path.is_dir():
        if any(place.expert(1).exists() for place in (EnsembleDir(path), RunDir(path).ensemble)):
            raise ConfigError(f"initial_weights {path} holds several experts; name one of its expert_.. directories")
        for place in PLACES:
            if (path / place).is_file():
                return InitialWeights(path=(path / place).absolute(), sha256=sha256_file(path / place))
        raise ConfigError(f"initial_weights {path} holds no network; give a finished run, an expert or a file")
    if not path.is_file():
        raise ConfigError(f"initial_weights {path} does not exist; give a finished run, an expert or a file")
    return InitialWeights(path=path.absolute(), sha256=sha256_file(path))


def check_initial(
    initial: InitialWeights, config: AnyModel, *, channels: int, image_size: int, num_classes: int | None
) -> None:
    """Raise ConfigError unless the file holds weights of just this network; nothing is allocated for the network."""
    file = initial.path
    if is_remix(file):
        raise ConfigError(
            f"initial_weights {file} is a remix, which only strategy.kind remix can start from; "
            "make plain networks of it with: rememe bake"
        )
    model = meta_model(initial, config, channels=channels, image_size=image_size, num_classes=num_classes)
    _check_shapes(file, read_weights(file), model)


def meta_model(
    initial: InitialWeights, config: AnyModel, *, channels: int, image_size: int, num_classes: int | None
) -> nn.Module:
    """The network that is to start from the file, without memory. ConfigError if its timesteps are encoded otherwise.

    That is not to be seen from the shapes of weights.
    """
    file = initial.path
    published = file.suffix in PICKLE_SUFFIXES
    if isinstance(config, DiTConfig):
        # A pickle is taken for a checkpoint of the DiT paper; what diffusers saves has a config beside it.
        shift = 0 if published else _saved_shift(file)
        if shift is not None and shift != config.frequency_shift:
            raise ConfigError(
                f"initial_weights {file} was trained with timestep frequencies of frequency_shift {shift}; "
                f"set model.frequency_shift to {shift} (it is {config.frequency_shift})"
            )
    with torch.device("meta"):
        model: nn.Module = build_model(config, channels=channels, image_size=image_size, num_classes=num_classes)
    return model


def load_initial(model: nn.Module, file: Path) -> None:
    """Put the file's weights into the network. Raises ConfigError if it holds others."""
    weights = read_weights(file)
    _check_shapes(file, weights, model)
    model.load_state_dict(weights)


def read_weights(file: Path) -> dict[str, Tensor]:
    """A flat state dict from safetensors, or from a pickle that holds nothing but tensors. ConfigError otherwise."""
    try:
        if file.suffix not in PICKLE_SUFFIXES:
            return safetensors.torch.load_file(file)
        # weights_only runs no code; mapped, for of a training checkpoint most is never looked at.
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"initial_weights {file} is not a plain state dict: it holds Python objects, which could run code; "
            "save model.state_dict() alone"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise ConfigError(f"initial_weights {file} cannot be read: {str(error).splitlines()[0]}") from None
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not (isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ConfigError(f"initial_weights {file} holds no state dict (a flat map of names to tensors)")
    # DistributedDataParallel puts it in front of every name.
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def _check_shapes(file: Path, weights: dict[str, Tensor], model: nn.Module) -> None:
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in ours.items():
        if name not in weights:
            raise ConfigError(f"initial_weights {file} is of another network: it has no {name}")
        if tuple(weights[name].shape) != shape:
            raise ConfigError(
                f"initial_weights {file} is of another network: its {name} is {list(weights[name].shape)}, "
                f"this model's {list(shape)}"
            )
    extra = next((name for name in weights if name not in ours), None)
    if extra is not None:
        raise ConfigError(f"initial_weights {file} is of another network: this model has no {extra}")


def _saved_shift(file: Path) -> int | None:
    """frequency_shift of the config beside the weights, if there is one."""
    config = file.with_name("config.json")
    if not config.is_file():
        return None
    shift: int | None = json.loads(config.read_text()).get("frequency_shift")
    return shift

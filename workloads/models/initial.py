"""Weights to start from: a finished run of one network, an expert's directory, or a file somebody else has written."""

import json
import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workloads.config.job import InitialConversion, InitialWeights
from workloads.config.models import AnyModel, DiTConfig
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.models.build import DIFFUSERS_CLASS, NETWORK, WEIGHTS, build_model
from workloads.models.conversion import convert
from workloads.models.dit import DiT, diffusers_names, diffusers_projections, from_diffusers
from workloads.models.growth import is_remix
from workloads.models.remix import REMIX_WEIGHTS
from workloads.models.state_dicts import StateDict, find_state_dict
from workloads.models.weights_file import INDEX, is_pickle, open_weights, refuse_one_part, weights_sha256
from workloads.places import EnsembleDir, ExportDir, JobDir, RunDir
from workloads.training.result import completed

logger = logging.getLogger(__name__)

HERE = Path()
JOB, ENSEMBLE, RUN, EXPORT = JobDir(HERE), EnsembleDir(HERE), RunDir(HERE), ExportDir(HERE)
PLACES = (
    HERE / WEIGHTS,
    JOB.expert / WEIGHTS,
    *(place.expert(0) / WEIGHTS for place in (ENSEMBLE, RUN.ensemble, EXPORT.experts)),
    *(folder / REMIX_WEIGHTS for folder in (HERE, JOB.remix, RUN.ensemble.remix)),
    # As others keep theirs, averages first: diffusers in one file or several, in a pipeline or not; accelerate.
    *(
        Path(folder, f"{name}{ending}")
        for folder in ("", "transformer_ema", "unet_ema", "transformer", "unet")
        for name in (WEIGHTS, "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
        for ending in ("", INDEX)
    ),
)
"""Where a directory may hold the weights of its one network, or of its remix, seen from there."""

TRAINING_ONLY = ("projectors.",)
"""Beginnings of the names of parts that only training needs: REPA's (arXiv:2410.06940)."""

UNSEEN = {
    "num_heads": "model.num_heads",
    "attention_head_dim": "model.head_dim",
    "norm_num_groups": "model.norm_groups",
    "mixer_pool_sizes": "model.pool_sizes",
    "num_attention_heads": "model.num_heads",
    "norm_eps": None,
    "act_fn": None,
    "flip_sin_to_cos": None,
    "freq_shift": None,
    "time_embedding_type": None,
    "resnet_time_scale_shift": None,
    "mid_block_scale_factor": None,
    "center_input_sample": None,
}
"""What a network's config.json says that shapes of weights do not, and the setting here, if there is one."""

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def resolve_initial(path: Path, conversion: InitialConversion | None = None) -> InitialWeights:
    """The file behind initial_weights, and its SHA-256. ConfigError if there is none, or if there are several."""
    try:
        file = _file_of(path)
    except OSError as error:
        raise ConfigError(f"initial_weights {path} cannot be read ({error.strerror}); give another path") from None
    refuse_one_part(file)
    _refuse_damaged(file)
    sha256 = weights_sha256(file)
    return InitialWeights(path=file.absolute(), sha256=sha256, conversion=conversion or InitialConversion())


def _refuse_damaged(file: Path) -> None:
    """DamagedFileError if the file is an expert's of a job or a run of ours, and not as it was trained."""
    home = file.parent.parent
    if EnsembleDir(home).index.is_file():
        Ensemble.load(home).verify()
    elif JobDir(home).description.is_file():
        completed(home)


def _file_of(path: Path) -> Path:
    if path.is_dir():
        places = (EnsembleDir(path), RunDir(path).ensemble, ExportDir(path).experts)
        several = [*(place.expert(1) for place in places), ExportDir(path).second_of_two]
        if found := next((one for one in several if one.exists()), None):
            raise ConfigError(
                f"initial_weights {path} holds several experts; name one of its directories, such as {found}"
            )
        for place in PLACES:
            if (path / place).is_file():
                return path / place
        raise ConfigError(
            f"initial_weights {path} holds no network; give a finished run, an expert, a diffusers directory or a file"
        )
    if path.is_file():
        return path
    what = "is neither a file nor a directory" if path.exists() else "does not exist"
    raise ConfigError(f"initial_weights {path} {what}; give a finished run, an expert or a file")


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
    found, _ = _weights_for(model, initial)
    if found.keys or found.prefix:
        average = "averaged weights, " if found.is_average else ""
        _say_once(f"initial_weights {file}: starts from the {average}{found.place}")


def meta_model(
    initial: InitialWeights, config: AnyModel, *, channels: int, image_size: int, num_classes: int | None
) -> nn.Module:
    """The network that is to start from the file, without memory. ConfigError if it works otherwise.

    That is not to be seen from the shapes of weights.
    """
    file = initial.path
    with torch.device("meta"):
        model: nn.Module = build_model(config, channels=channels, image_size=image_size, num_classes=num_classes)
    saved = _saved_config(file)
    _check_unseen(file, saved, model)
    if isinstance(config, DiTConfig):
        is_diffusers = saved.get("_class_name") == DIFFUSERS_CLASS
        # A pickle is taken for a checkpoint of the DiT paper; what diffusers saves has a config beside it.
        shift = 1 if is_diffusers else saved.get("frequency_shift", 0 if is_pickle(file) else None)
        _check_shift(file, shift, config)
    return model


def load_initial(model: nn.Module, initial: InitialWeights) -> None:
    """Put the file's weights into the network. Raises ConfigError if it holds others."""
    _, weights = _weights_for(model, initial)
    model.load_state_dict(model.state_dict() | weights)


def _weights_for(model: nn.Module, initial: InitialWeights) -> tuple[StateDict, dict[str, Tensor]]:
    """Where the network's weights were found, and they, converted as asked. ConfigError unless they are of just it."""
    file, ours = initial.path, model.state_dict()
    forms: list[Collection[str]] = [ours.keys()]
    if isinstance(model, DiT):
        depth = len(model.blocks)
        forms.append({*diffusers_names(depth), *diffusers_projections(depth)})
    found = find_state_dict(file, open_weights(file), forms)
    weights = found.tensors
    # Only what is used, for beside it lie counters, and parts that only training needs.
    used = {name: tensor for name, tensor in weights.items() if not name.startswith(TRAINING_ONLY)}
    _check_values(file, used)
    if found.form == 1:
        assert isinstance(model, DiT)
        used = _from_diffusers(file, used, model)
    used = convert(file, used, model, initial.conversion)
    _check_shapes(file, used, {name: tuple(tensor.shape) for name, tensor in ours.items()})
    return found, used


def _from_diffusers(file: Path, weights: Mapping[str, Tensor], model: DiT) -> dict[str, Tensor]:
    try:
        # Positions are computed there; here they are what they are in a fresh network.
        return from_diffusers(weights, len(model.blocks)) | {"pos_embed": model.pos_embed.detach()}
    except KeyError as error:
        raise ConfigError(f"initial_weights {file} is of another network: it has no {error.args[0]}") from None
    except ValueError as error:
        raise ConfigError(f"initial_weights {file} cannot become a DiT: {error}") from None


def _check_values(file: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            kind = str(tensor.dtype).removeprefix("torch.")
            whole = "whole numbers" if not (tensor.is_floating_point() or tensor.is_complex()) else "numbers"
            raise ConfigError(
                f"initial_weights {file} holds {whole} of type {kind} as {name}, perhaps quantised weights; "
                "give them as float32, float16 or bfloat16"
            )
        # A tensor may claim more numbers than the file has, all the same one.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(
                f"initial_weights {file} has fewer numbers than its {name} claims; save a contiguous tensor"
            )
        if not torch.isfinite(tensor.float()).all():
            raise ConfigError(
                f"initial_weights {file} cannot be a start: its {name} is not finite (NaN or infinite), as where a "
                "training has diverged; give an earlier state"
            )


def _check_shapes(file: Path, weights: Mapping[str, Tensor], ours: Mapping[str, tuple[int, ...]]) -> None:
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


def _saved_config(file: Path) -> dict[str, Any]:
    """The config beside the weights, if there is one."""
    config = file.with_name(NETWORK)
    if not config.is_file():
        return {}
    try:
        saved = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ConfigError(f"initial_weights {file}: the config.json beside it is damaged; copy it again") from None
    return saved if isinstance(saved, dict) else {}


def _check_unseen(file: Path, saved: Mapping[str, Any], model: nn.Module) -> None:
    """What weights are of and do not show."""
    name, ours = saved.get("_class_name"), dict(getattr(model, "config", {}))
    if isinstance(model, DiT) and name == DIFFUSERS_CLASS:
        ours = {"num_attention_heads": ours["num_heads"]}
    elif name is not None and name != type(model).__name__:
        raise ConfigError(
            f"initial_weights {file} is of another network: its config.json says {name}, this model is a "
            f"{type(model).__name__}"
        )
    for key, setting in UNSEEN.items():
        if key not in saved or key not in ours or _plain(saved[key]) == _plain(ours[key]):
            continue
        hint = f"set {setting} to that" if setting else "no setting changes that here"
        raise ConfigError(
            f"initial_weights {file} was trained with {key} {saved[key]}, and this model has {ours[key]}; {hint}"
        )


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _check_shift(file: Path, shift: int | None, config: DiTConfig) -> None:
    if shift is not None and shift != config.frequency_shift:
        raise ConfigError(
            f"initial_weights {file} was trained with timestep frequencies of frequency_shift {shift}; "
            f"set model.frequency_shift to {shift} (it is {config.frequency_shift})"
        )


# A study plans many configurations with one start.
@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    logger.warning(text)

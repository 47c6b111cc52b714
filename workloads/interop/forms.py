"""An ensemble written out as other tools expect it. What a form cannot hold is refused before anything is written."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline
from safetensors.torch import save_file
from torch import nn

from workloads.config.evaluation import OWN_SAMPLERS, VARIANCE_SAMPLERS, SamplingConfig
from workloads.diffusion.sampling import make_scheduler
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.interop.experts import TimestepExperts
from workloads.interop.pipeline import MultiExpertPipeline, TwoExpertPipeline, boundary_ratio_of
from workloads.models.dit import PIPELINE_NULL_CLASS, DiT, is_of_diffusers, to_diffusers
from workloads.places import EnsembleDir, ExportDir
from workloads.progress import Progress

Form = Literal["diffusers", "wan", "safetensors"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    pipeline: type[DiffusionPipeline] | None
    """What opens it; None for a form without."""

    experts: tuple[int, ...]
    """Their numbers in the ensemble, in the order of the clean end to the noisy one."""

    networks: tuple[str, ...]
    """Class of each."""

    num_parameters: tuple[int, ...]


def check_form(ensemble: Ensemble, form: Form, expert: int | None) -> None:
    """Raise ConfigError unless the ensemble, or the one expert of it, can take the form."""
    count = len(ensemble.intervals)
    if expert is not None and not 0 <= expert < count:
        raise ConfigError(f"--expert is {expert}, and {ensemble.path} has experts 0 to {count - 1}; name one of these")
    if form == "wan" and (expert is not None or count != 2):
        raise ConfigError(
            f"--to wan is for two experts, transformer and transformer_2, and {'one' if expert is not None else count} "
            f"of {ensemble.path} would be written; say --to diffusers"
        )


def write_form(ensemble: Ensemble, form: Form, target: Path, *, expert: int | None, on_progress: Progress) -> Exported:
    """Write all experts, or one for all timesteps, into a directory that there is. ConfigError as check_form's."""
    check_form(ensemble, form, expert)
    indices = tuple(range(len(ensemble.intervals))) if expert is None else (expert,)
    networks = _Networks(ensemble, indices, on_progress)
    if form == "safetensors":
        _write_tensors(ensemble, target, networks)
        return networks.exported(None)
    if form == "wan":
        return networks.exported(_write_two(ensemble, target, networks))
    if len(indices) == 1 and (kind := _write_stock(ensemble, target, networks)) is not None:
        return networks.exported(kind)
    return networks.exported(_write_experts(ensemble, target, networks))


class _Networks:
    """The experts in turn, as the export has them."""

    def __init__(self, ensemble: Ensemble, indices: Sequence[int], on_progress: Progress) -> None:
        self._ensemble, self.indices, self._on_progress = ensemble, tuple(indices), on_progress
        self._kinds: list[str] = []
        self._sizes: list[int] = []

    def next(self, form: Callable[[Any], Any]) -> Any:
        network = form(self._ensemble.expert(self.indices[len(self._kinds)]))
        self._kinds.append(type(network).__name__)
        self._sizes.append(sum(parameter.numel() for parameter in network.parameters()))
        self._on_progress(len(self._kinds), len(self.indices))
        return network

    def exported(self, pipeline: type[DiffusionPipeline] | None) -> Exported:
        return Exported(pipeline, self.indices, tuple(self._kinds), tuple(self._sizes))


def _network(model: Any) -> Any:
    """As diffusers' own class, if that can be the network; else as ours, which fails clearly in its place."""
    if isinstance(model, DiT) and is_of_diffusers(model.config):
        return to_diffusers(model)
    return _nameless(model)


def _nameless(model: Any) -> Any:
    """Without where it lay, which is nobody's business."""
    model.register_to_config(_name_or_path="")
    return model


def _write_experts(ensemble: Ensemble, target: Path, networks: _Networks) -> type[DiffusionPipeline]:
    """A MultiExpertPipeline, one network in memory at a time."""
    place = ExportDir(target)
    for number in range(len(networks.indices)):
        networks.next(_network).save_pretrained(place.experts.expert(number))
    cuts = ensemble.intervals.cuts if len(networks.indices) > 1 else ()
    shell = TimestepExperts(
        experts=[nn.Identity() for _ in networks.indices],
        cuts=cuts,
        num_timesteps=ensemble.diffusion.num_timesteps,
        num_classes=ensemble.num_classes,
    )
    pipeline = MultiExpertPipeline(shell, _scheduler(ensemble), **_options(ensemble))
    shell.save_config(place.experts.path)
    pipeline.scheduler.save_pretrained(place.scheduler)
    if pipeline.vae is not None:
        pipeline.vae.save_pretrained(place.vae)
    pipeline.save_config(target)
    return MultiExpertPipeline


def _write_two(ensemble: Ensemble, target: Path, networks: _Networks) -> type[DiffusionPipeline]:
    clean, noisy = networks.next(_network), networks.next(_network)
    (cut,) = ensemble.intervals.cuts
    pipeline = TwoExpertPipeline(
        noisy,
        clean,
        _scheduler(ensemble),
        boundary_ratio=boundary_ratio_of(cut, ensemble.diffusion.num_timesteps),
        num_classes=ensemble.num_classes,
        **_options(ensemble),
    )
    pipeline.save_pretrained(target)
    return TwoExpertPipeline


def _write_stock(ensemble: Ensemble, target: Path, networks: _Networks) -> type[DiffusionPipeline] | None:
    """diffusers' own DiTPipeline if that draws with the one network: None if not, and then nothing is written."""
    model, latent, num_classes = ensemble.expert(networks.indices[0]), ensemble.index.latent, ensemble.num_classes
    if not isinstance(model, DiT) or not is_of_diffusers(model.config) or latent is None or num_classes is None:
        return None
    scale = (float(ensemble.vae.config.scaling_factor), 0.0)
    if not isinstance(ensemble.vae, AutoencoderKL) or scale != (latent.scaling_factor, latent.shift_factor):
        return None
    if num_classes > PIPELINE_NULL_CLASS:
        return None
    scheduler = make_scheduler(ensemble.diffusion, stock_sampling(ensemble.config.evaluation.sampling))
    names = dict(enumerate(ensemble.class_names))
    pipeline = DiTPipeline(networks.next(_network), _nameless(ensemble.vae), scheduler)
    pipeline.register_to_config(id2label=names)  # read from there, and not put there by DiTPipeline
    pipeline.save_pretrained(target)
    kind: type[DiffusionPipeline] = DiTPipeline
    return kind


def stock_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """What DiTPipeline, which leaves out learned variances and has diffusers' schedulers alone, comes nearest with."""
    if sampling.sampler not in {*OWN_SAMPLERS, *VARIANCE_SAMPLERS}:
        return sampling
    return SamplingConfig(
        sampler="DDIMScheduler",
        options={"timestep_spacing": "trailing"},
        num_steps=sampling.num_steps,
        variance="fixed",
        guidance_scale=sampling.guidance_scale,
    )


def _scheduler(ensemble: Ensemble) -> Any:
    # Pixels lie in [-1, 1], latents have no bounds.
    clip = ensemble.index.latent is None
    return make_scheduler(ensemble.diffusion, ensemble.config.evaluation.sampling, clip=clip)


def _options(ensemble: Ensemble) -> dict[str, Any]:
    sampling, latent = ensemble.config.evaluation.sampling, ensemble.index.latent
    scale = {} if latent is None else {"scaling_factor": latent.scaling_factor, "shift_factor": latent.shift_factor}
    return scale | {
        "vae": None if latent is None else _nameless(ensemble.vae),
        "id2label": None if ensemble.num_classes is None else dict(enumerate(ensemble.class_names)),
        "defaults": {
            "num_inference_steps": sampling.num_steps,
            "guidance_scale": sampling.guidance_scale,
            "guidance_channels": sampling.guidance_channels,
            "eta": sampling.eta,
            "variance": sampling.variance,
        },
    }


def _write_tensors(ensemble: Ensemble, target: Path, networks: _Networks) -> None:
    """A file per expert, which says what it is: architecture and timesteps."""
    for index in networks.indices:
        model = networks.next(lambda network: network)
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        told = {
            "format": "pt",
            "class": type(model).__name__,
            "config": json.dumps(config),
            "timesteps": json.dumps(tuple(ensemble.intervals[index])),
        }
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, EnsembleDir(target).expert(index).with_suffix(".safetensors"), told)

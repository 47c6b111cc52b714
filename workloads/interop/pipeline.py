"""Several experts as a pipeline of diffusers, each called at the timesteps that it was trained for."""

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils import is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from workloads.diffusion.sampling import check_timesteps, follow, guide
from workloads.evaluation.generate import image_seeds
from workloads.interop.experts import TimestepExperts

# Axes: B batch, C channels, H height, W width.

DEFAULTS = {
    "num_inference_steps": 50,
    "guidance_scale": 1.0,
    "guidance_channels": None,  # guide these first channels alone
    "eta": 0.0,  # DDIM's noise
    "variance": None,  # "fixed": leave out what the experts learned of it
}
"""Of a call."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Generators = torch.Generator | list[torch.Generator] | None


class MultiExpertPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images from N experts. The expert is chosen by the timestep that the scheduler gives, never by the step's number.

    Any scheduler of diffusers for a diffusion of given betas takes the place of `scheduler`; the same one draws what
    `rememe sample` draws of the same noise.
    """

    model_cpu_offload_seq = "experts->vae"
    _optional_components: ClassVar = ["vae"]

    def __init__(
        self,
        experts: TimestepExperts,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        id2label: Mapping[int, str] | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """vae makes images of latents / scaling_factor + shift_factor; without, experts denoise pixels in [-1, 1].

        defaults: what a call takes unless it says otherwise; see DEFAULTS.
        """
        super().__init__()
        self.register_modules(experts=experts, scheduler=scheduler, vae=vae)
        self._remember(id2label, scaling_factor, shift_factor, defaults)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """As of any pipeline of diffusers."""
        options.setdefault("low_cpu_mem_usage", is_accelerate_available())  # no warning that it is missing
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    def _remember(
        self,
        id2label: Mapping[int, str] | None,
        scaling_factor: float,
        shift_factor: float,
        defaults: Mapping[str, Any] | None,
    ) -> None:
        if unknown := sorted((defaults or {}).keys() - DEFAULTS.keys()):
            raise ValueError(f"defaults has {unknown[0]}, which is none of {', '.join(DEFAULTS)}")
        self.register_to_config(
            id2label=id2label,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            defaults=DEFAULTS | dict(defaults or {}),
        )

    @property
    def labels(self) -> dict[str, int]:
        """Classes by name."""
        return {name: int(number) for number, name in (self.config.id2label or {}).items()}

    def offload_experts(self, device: torch.device | str) -> None:
        """Keep only the expert in use on `device`, and the others on the CPU: the memory of one network, not of N."""
        self._experts.offload(device)
        if self.vae is not None:
            self.vae.to(device)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        *,
        batch_size: int | None = None,
        eta: float | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of these classes, by number or name; without, batch_size images (one if not given) of any class.

        generator: one of each image (sample_generators gives those of rememe sample), or one for all.
        latents: (B, C, H, W) standard normal noise to start from; it is drawn if not given.
        output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W) in [0, 1], or "latent", before the vae.

        ValueError if a class, the number of generators or the scheduler does not go with the experts, or if a setting
        is none that can be drawn with.
        """
        said, experts = self.config.defaults, self._experts
        self._check_scheduler()
        num_steps = _whole("num_inference_steps", _given(num_inference_steps, said["num_inference_steps"]))
        guidance_scale = _number("guidance_scale", _given(guidance_scale, said["guidance_scale"]), math.inf)
        eta = _number("eta", _given(eta, said["eta"]), 1)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}")
        labels_B = self._labels(class_labels, batch_size, latents)
        shape = (len(labels_B), *experts.shape_CHW)
        generator = _generators(generator, len(labels_B))
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=experts.device, dtype=experts.dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; these experts and labels want {shape}")
        null_label = experts.config.num_classes
        guided = guide(
            lambda x_BCHW, timestep, labels: experts(x_BCHW, timestep, class_labels=labels).sample,
            guidance_scale,
            None if null_label is None else labels_B.to(experts.device),
            null_label,
            said["guidance_channels"],
        )
        self.scheduler.set_timesteps(num_steps)
        check_timesteps(self.scheduler)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            x_BCHW = follow(
                guided,
                latents.to(experts.device) * self.scheduler.init_noise_sigma,
                self.scheduler,
                generator=generator,
                eta=eta,
                variance=said["variance"],
                on_step=lambda _done, _total: bar.update(),
            )
        images = self._finished(x_BCHW, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def _experts(self) -> TimestepExperts:
        experts: TimestepExperts = self.experts
        return experts

    def _check_scheduler(self) -> None:
        kind, theirs = type(self.scheduler).__name__, self.scheduler.config.num_train_timesteps
        ours = self._experts.config.num_timesteps
        if not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(f"{kind} is not for a diffusion of given betas; use another, such as DDIMScheduler")
        if theirs != ours:
            raise ValueError(
                f"{kind} counts {theirs} timesteps and the experts {ours}; make it with from_config of the config of "
                "the pipeline's own scheduler"
            )

    def _labels(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None,
        batch_size: int | None,
        latents: Tensor | None,
    ) -> Tensor:
        """int64 (B,) on the CPU, "no class" where none are named."""
        num_classes = self._experts.config.num_classes
        number = None if batch_size is None else _whole("batch_size", batch_size)
        if class_labels is None:
            started = number or 1 if latents is None else len(latents)
            labels_B = torch.full((started,), num_classes or 0)
        elif num_classes is None:
            raise ValueError("class_labels are given, and these experts know no classes; give batch_size instead")
        else:
            labels_B = torch.tensor([self._label(one, num_classes) for one in _listed(class_labels)], dtype=torch.int64)
        given = "latents" if class_labels is None else "class_labels"
        if not len(labels_B):
            raise ValueError(f"{given} is empty, so there is nothing to draw; give one for each image")
        if number not in {None, len(labels_B)}:
            raise ValueError(f"batch_size is {number}, but {given} is for {len(labels_B)}; leave batch_size out")
        return labels_B

    def _label(self, one: Any, num_classes: int) -> int:
        names = self.labels
        if isinstance(one, str):
            if one not in names:
                raise ValueError(f"no class is called {one!r}; pipe.labels has their names")
            return names[one]
        label = _as_whole(one)
        if label is None:
            raise ValueError(f"class_labels has {one!r}, which is no class; give whole numbers or names")
        if not 0 <= label <= num_classes:
            raise ValueError(f"class {label} is none of 0 to {num_classes - 1} ({num_classes} is no class)")
        return label

    def _finished(self, x_BCHW: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x_BCHW
        if self.vae is not None:
            latents_BCHW = x_BCHW / self.config.scaling_factor + self.config.shift_factor
            x_BCHW = self.vae.decode(latents_BCHW.to(self.vae.dtype)).sample
        x_BCHW = (x_BCHW.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return x_BCHW
        images_BHWC = x_BCHW.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(images_BHWC) if output_type == "pil" else images_BHWC


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _as_whole(value: Any) -> int | None:
    """A whole number of Python, numpy or torch, or a float that is one; None of anything else."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        return None


def _whole(name: str, value: Any) -> int:
    number = _as_whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return number


def _number(name: str, value: Any, most: float) -> float:
    value = value.item() if hasattr(value, "item") else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= most and math.isfinite(value)):
        wanted = "0 or more" if math.isinf(most) else f"from 0 to {most:g}"
        raise ValueError(f"{name} is {value!r}; it must be a number {wanted}")
    return float(value)


def _listed(class_labels: int | str | Sequence[int | str] | Tensor) -> list[Any]:
    """One label stands for a list of it."""
    if isinstance(class_labels, str):
        return [class_labels]
    listed = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels  # of torch and numpy
    return list(listed) if hasattr(listed, "__iter__") else [listed]


def _generators(generator: Any, num_images: int) -> Generators:
    """As diffusers takes them; a list of another length it would take as far as it goes."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, list | tuple) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(f"generator is {generator!r}; give a torch.Generator, or a list of one for each image")
    if len(generator) != num_images:
        raise ValueError(f"generator is a list of {len(generator)} for {num_images} images; give one for each, or one")
    return list(generator)


class TwoExpertPipeline(MultiExpertPipeline):
    """Two experts as diffusers' Wan pipelines have them: `transformer` from t = boundary_ratio * T on, and below, at
    the clean end, `transformer_2`; T is the scheduler's num_train_timesteps."""

    model_cpu_offload_seq = "transformer->transformer_2->vae"

    def __init__(
        self,
        transformer: ModelMixin,
        transformer_2: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        boundary_ratio: float = 0.5,
        num_classes: int | None = None,
        id2label: Mapping[int, str] | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """As MultiExpertPipeline's, with the experts apart."""
        DiffusionPipeline.__init__(self)
        self.register_modules(transformer=transformer, transformer_2=transformer_2, scheduler=scheduler, vae=vae)
        self.register_to_config(boundary_ratio=boundary_ratio, num_classes=num_classes)
        self._remember(id2label, scaling_factor, shift_factor, defaults)
        num_timesteps = scheduler.config.num_train_timesteps
        cut = math.ceil(boundary_ratio * num_timesteps)
        self._both = TimestepExperts(
            experts=[transformer_2, transformer], cuts=[cut], num_timesteps=num_timesteps, num_classes=num_classes
        )

    @property
    def _experts(self) -> TimestepExperts:
        # One may have been put in the place of another.
        both: TimestepExperts = self._both
        both.experts[0], both.experts[1] = self.transformer_2, self.transformer
        return both


def boundary_ratio_of(cut: int, num_timesteps: int) -> float:
    """The ratio by which `t >= boundary_ratio * num_timesteps`, in float64, holds of just the timesteps from cut on."""
    ratio = cut / num_timesteps
    while ratio * num_timesteps > cut:  # 0.07 * 100 > 7
        ratio = math.nextafter(ratio, 0)
    return ratio


def sample_generators(seed: int, num_images: int, start: int = 0) -> list[torch.Generator]:
    """Generators of images start, start + 1, ... of `rememe sample --seed seed`, one each."""
    return [torch.Generator().manual_seed(one) for one in image_seeds(seed, range(start, start + num_images))]

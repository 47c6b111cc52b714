"""N networks as one component of a diffusers pipeline, which the timestep chooses between."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from workloads.config.intervals import IntervalTable
from workloads.models.build import load_model
from workloads.places import EnsembleDir

# Axes: B batch, C channels, H height, W width.


class TimestepExperts(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Call as experts(x_BCHW, timestep, class_labels=labels_B).sample; the expert that owns the timestep answers.

    Expert 0 is nearest the clean image; expert i owns cuts[i - 1] <= t < cuts[i]. On disk each is a directory as
    save_pretrained writes it, which diffusers opens where it has the class.
    """

    ignore_for_config = ("experts",)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # diffusers would take a second one by its place for the first
        experts: Sequence[nn.Module],
        cuts: Sequence[int] = (),
        num_timesteps: int = 1000,
        num_classes: int | None = None,  # noqa: ARG002 (kept in the config, as all of them)
    ) -> None:
        """ValueError unless there is an expert for each interval between the cuts.

        Label num_classes means "no class"; None: there are no classes.
        """
        super().__init__()
        self.intervals = IntervalTable(cuts, num_timesteps)
        if len(experts) != len(self.intervals):
            raise ValueError(f"there are {len(experts)} experts for {len(self.intervals)} intervals of timesteps")
        self.experts = nn.ModuleList(experts)
        self._place: torch.device | None = None
        self._active: int | None = None

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """Of what is denoised."""
        config: Any = self.experts[0].config
        return (config.in_channels, config.sample_size, config.sample_size)

    def forward(self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None) -> Any:
        """(B, C, H, W), one timestep for all images, (B,) -> an output whose `sample` is (B, C or 2 C, H, W).

        ValueError if timesteps differ, which may belong to several experts, or lie outside [0, T).
        """
        if isinstance(timestep, Tensor):
            if timestep.numel() > 1 and (timestep != timestep.flatten()[0]).any():
                raise ValueError(f"timesteps {timestep.tolist()} differ; call the experts with one timestep at a time")
            timestep = timestep.flatten()[0].item()
        network = self._network(self.intervals.expert_of(timestep))
        t_B = torch.full((len(sample),), timestep, device=sample.device)
        return network(sample, t_B, class_labels=class_labels)

    def offload(self, device: torch.device | str) -> None:
        """From now on keep on `device` only the expert that was called last, and all others on the CPU."""
        self._place, self._active = torch.device(device), None
        self.experts.to("cpu")

    def _network(self, index: int) -> nn.Module:
        if self._place is not None and self._active != index:
            self.experts.to("cpu")
            self.experts[index].to(self._place)
            self._active = index
        return self.experts[index]

    @property
    def device(self) -> torch.device:
        """Where images go in."""
        place: torch.device = super().device if self._place is None else self._place
        return place

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """A config.json, and a directory for each expert."""
        place = EnsembleDir(Path(save_directory))
        self.save_config(save_directory)
        for index, expert in enumerate(self.experts):
            model: Any = expert
            model.save_pretrained(place.expert(index), **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> "TimestepExperts":
        """What save_pretrained wrote, from this directory alone. CheckpointError if an expert is not there."""
        place = EnsembleDir(Path(pretrained_model_name_or_path))
        said: Any = cls.load_config(place.path, local_files_only=True)
        experts = [load_model(place.expert(index), torch_dtype) for index in range(len(said["cuts"]) + 1)]
        settings = {name: said.get(name) for name in ("cuts", "num_timesteps", "num_classes")}
        loaded: TimestepExperts = cls(experts=experts, **settings).eval()
        return loaded

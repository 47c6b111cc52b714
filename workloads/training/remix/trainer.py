"""The trainer of a remix."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from workloads.config.intervals import Interval
from workloads.config.job import InitialConversion, InitialWeights
from workloads.config.strategy import RemixJob
from workloads.errors import ConfigError
from workloads.models.build import new_model
from workloads.models.cost import mixed_size, model_cost, training_memory_bytes
from workloads.models.growth import check_growth, is_remix
from workloads.models.remix import REMIX_WEIGHTS, RemixNetwork
from workloads.places import JobDir
from workloads.training.coefficients import CoefficientHistory
from workloads.training.loop import Hook
from workloads.training.processes import Workers
from workloads.training.remix.state import RemixState
from workloads.training.remix.step import RemixStep, draw_experts
from workloads.training.trainer import JobCost, Trainer


class RemixTrainer(Trainer[RemixJob]):
    """Trains all bases and their coefficients together."""

    def cost(self) -> JobCost:
        """Beside a plain network's memory, per worker: K - 1 more copies of the mixed parameters with moments and
        average, the mixture, and one gradient per set that workers exchange.
        """
        job, remix, training, shape = self.job, self.job.remix, self.job.training, self.job.data.input_shape
        plain = model_cost(job.model, **shape)
        num_mixed, num_layers = mixed_size(job.model, remix.mixed, **shape)
        rows = num_layers if remix.mixer == "per_layer" else 1
        table = 0 if remix.mixer in {"one_hot", "continuous"} else remix.count * rows * remix.num_bases
        copies = 3 if training.ema_halflife_images is None else 4
        more = (remix.num_bases - 1) * copies + min(remix.experts_per_step, remix.num_bases)
        # Experts of a step go through the network one after the other.
        local = training.model_copy(update={"batch_size": max(1, training.batch_size // remix.experts_per_step)})
        return JobCost(
            num_parameters=plain.num_parameters + (remix.num_bases - 1) * num_mixed + table,
            num_active_parameters=plain.num_parameters,
            macs=plain.macs,
            memory_bytes=training_memory_bytes(job.model, local, **shape) + 4 * more * num_mixed,
        )

    def check_initial(self, initial: InitialWeights) -> None:
        """Raise ConfigError unless the weights are those of the plain network, or of a remix this one can grow from."""
        from workloads.models.initial import check_initial, meta_model

        job, shape = self.job, self.job.data.input_shape
        if is_remix(initial.path):
            if initial.conversion != InitialConversion():
                raise ConfigError(
                    f"initial_weights {initial.path} is a remix, for which there is no initial_conversion; leave it out"
                )
            check_growth(initial.path, meta_model(initial, job.model, **shape), job.remix, job.intervals)
        else:
            check_initial(initial, job.model, **shape)

    def begin(self, device: torch.device, workers: Workers) -> tuple[RemixState, RemixStep]:
        """The state before the first step, and the step."""
        return RemixState(self.job, device), RemixStep(self.job, device, workers)

    def drawn_at(self, images_seen: int) -> str:
        """The experts, each with an equal part of the batch."""
        job = self.job
        experts = draw_experts(job.seed, len(job.intervals), job.remix.experts_per_step, images_seen)
        return ", ".join(f"expert {expert} at timesteps {job.intervals[expert]}" for expert in experts)

    def hooks(self, work_dir: Path, start_images: int) -> list[Hook]:
        """The coefficients over training."""
        file, every_images = JobDir(work_dir).coefficients, self.job.training.log_every_images
        return [CoefficientHistory(file, start_images=start_images, every_images=every_images)]

    @property
    def num_networks(self) -> int:
        """One per expert."""
        return len(self.job.intervals)

    @property
    def intervals(self) -> Sequence[Interval]:
        """One per expert."""
        return self.job.intervals

    def trained_networks(self, work_dir: Path, device: torch.device) -> Iterator[tuple[Interval, nn.Module]]:
        """Every expert, measured at the timesteps it owns."""
        folder = JobDir(work_dir).remix
        network = RemixNetwork(lambda: new_model(folder), load_file(folder / REMIX_WEIGHTS), device)
        yield from ((interval, network.expert(index)) for index, interval in enumerate(self.job.intervals))

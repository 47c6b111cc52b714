"""Training of an expert by itself: its step and its trainer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workloads.config.intervals import Interval
from workloads.config.job import ExpertJob, InitialWeights
from workloads.data.stream import Batch
from workloads.diffusion.process import DiffusionProcess
from workloads.diffusion.timesteps import draw_timesteps
from workloads.models.build import load_model
from workloads.models.cost import model_cost, training_memory_bytes
from workloads.models.initial import check_initial
from workloads.places import JobDir
from workloads.seeding import derive_seed
from workloads.training.hooks import first_of
from workloads.training.processes import Workers
from workloads.training.schedule import learning_rate
from workloads.training.state import TrainState, autocast, initial_model
from workloads.training.trainer import JobCost, Trainer

# Axes: B batch, C channels, H height, W width.


class DenoisingStep:
    """Noise a batch at the expert's timesteps, predict, descend. All draws depend on (job, images_seen) alone."""

    def __init__(self, job: ExpertJob, device: torch.device) -> None:
        self._job = job
        self._device = device
        self._process = DiffusionProcess(job.diffusion, device)
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, state: TrainState, batch: Batch) -> Tensor:
        config = self._job.training
        x0_BCHW = batch.images_BCHW.to(self._device, non_blocking=True)
        if config.channels_last:
            x0_BCHW = x0_BCHW.contiguous(memory_format=torch.channels_last)
        t_B, noise_BCHW, labels_B = self._draw(state.images_seen, x0_BCHW, batch.labels_B)
        x_t_BCHW = self._process.add_noise(x0_BCHW, noise_BCHW, t_B)
        total = torch.zeros((), device=self._device)
        micro = config.micro_batch_size or len(x0_BCHW)
        for lo in range(0, len(x0_BCHW), micro):
            part = slice(lo, lo + micro)
            labels = None if labels_B is None else labels_B[part]
            with autocast(self._device, config):
                prediction = self._network(state)(x_t_BCHW[part], t_B[part], class_labels=labels).sample
            # In fp32: bf16 has 8 bits, too few for the difference of two numbers that are nearly equal.
            loss_B = self._process.loss(prediction.float(), x0_BCHW[part], noise_BCHW[part], t_B[part])
            # Over the whole batch, so that the gradients of its parts add up to its own.
            loss = loss_B.sum() / len(x0_BCHW)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_grad_norm)
        state.images_seen += len(x0_BCHW)
        # The rate at the end of the step: a warm-up begins at zero, and its first step would do nothing.
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.images_seen)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update(len(x0_BCHW), state.images_seen)
        return total

    def _draw(self, images_seen: int, x0_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Timesteps, noise and (partly hidden) labels of the step that starts at images_seen."""
        job = self._job
        where = (job.seed, *job.interval, images_seen)
        on_cpu = torch.Generator().manual_seed(derive_seed("timesteps", *where))
        t_B = draw_timesteps(on_cpu, job.interval, job.specialisation, job.diffusion.num_timesteps, len(x0_BCHW))
        hidden_B = torch.rand(len(x0_BCHW), generator=on_cpu) < job.training.label_dropout
        # Noise is drawn where it is used: copying it would cost more than drawing it.
        on_device = torch.Generator(self._device).manual_seed(derive_seed("noise", *where))
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=on_device, device=self._device)
        if job.data.num_classes is None:
            return t_B.to(self._device), noise_BCHW, None
        labels_B = torch.where(hidden_B, job.data.num_classes, labels_B)
        return t_B.to(self._device), noise_BCHW, labels_B.to(self._device)

    def _network(self, state: TrainState) -> Callable[..., Any]:
        if not self._job.training.compile:
            return state.model
        if self._compiled is None:
            self._compiled = torch.compile(state.model)
        return self._compiled


class ExpertTrainer(Trainer[ExpertJob]):
    """Trains one network on timesteps of its interval."""

    def cost(self) -> JobCost:
        """That of the network."""
        model, shape = self.job.model, self.job.data.input_shape
        plain = model_cost(model, **shape)
        return JobCost(
            num_parameters=plain.num_parameters,
            num_active_parameters=plain.num_parameters,
            macs=plain.macs,
            memory_bytes=training_memory_bytes(model, self.job.training, **shape),
        )

    def check_initial(self, initial: InitialWeights) -> None:
        """Raise ConfigError unless the weights are those of just this network."""
        check_initial(initial, self.job.model, **self.job.data.input_shape)

    def begin(self, device: torch.device, workers: Workers) -> tuple[TrainState, DenoisingStep]:  # noqa: ARG002
        """The state before the first step, and the step."""
        model = initial_model(self.job, device)
        state = TrainState(model, self.job.training, self.job.diffusion.num_timesteps)
        return state, DenoisingStep(self.job, device)

    def drawn_at(self, images_seen: int) -> str:
        """The timesteps."""
        job = self.job
        generator = torch.Generator().manual_seed(derive_seed("timesteps", job.seed, *job.interval, images_seen))
        t_B = draw_timesteps(
            generator, job.interval, job.specialisation, job.diffusion.num_timesteps, job.training.batch_size
        )
        return f"timesteps {first_of(t_B.tolist())}"

    def trained_networks(self, work_dir: Path, device: torch.device) -> Iterator[tuple[Interval, nn.Module]]:
        """The one network, measured at all timesteps."""
        yield Interval(0, self.job.diffusion.num_timesteps), load_model(JobDir(work_dir).expert).to(device)

"""Training of an expert by itself: its step and its trainer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads.config.intervals import Interval
from workloads.config.job import ExpertJob, InitialWeights
from workloads.data.stream import Batch
from workloads.diffusion.process import DiffusionProcess
from workloads.diffusion.timesteps import draw_timesteps
from workloads.models.build import load_model
from workloads.models.cost import model_cost, training_memory_bytes
from workloads.places import JobDir
from workloads.seeding import derive_seed
from workloads.training.hooks import first_of
from workloads.training.processes import Workers
from workloads.training.schedule import learning_rate
from workloads.training.state import TrainState, autocast, initial_model
from workloads.training.trainer import JobCost, Trainer

# Axes: B batch, C channels, H height, W width.


class DenoisingStep:
    """Noise a batch at the expert's timesteps, predict, descend. All draws depend on (job, images_seen) alone.

    Worker r of W has the r-th part of the batch. All draws are of the whole batch, so W changes nothing but the order
    of sums.
    """

    def __init__(self, job: ExpertJob, device: torch.device, workers: Workers) -> None:
        self._job = job
        self._device = device
        self._workers = workers
        self._process = DiffusionProcess(job.diffusion, device)
        self._network: Callable[..., Any] | None = None
        self._without_exchange: Callable[[], AbstractContextManager[None]] = nullcontext
        """For the backward passes of all pieces of a batch but the last, in which workers add their gradients up."""

    def __call__(self, state: TrainState, batch: Batch) -> Tensor:
        config, num_images = self._job.training, len(batch.images_BCHW) * self._workers.world_size
        loss = self._backward(state, batch)
        self._workers.sum_(loss)
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_grad_norm)
        state.images_seen += num_images
        # The rate at the end of the step: a warm-up begins at zero, and its first step would do nothing.
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.images_seen)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update(num_images, state.images_seen)
        return loss

    def _backward(self, state: TrainState, batch: Batch) -> Tensor:
        """Leave the whole batch's gradient in the parameters; return this worker's share of the loss."""
        config = self._job.training
        x0_BCHW = batch.images_BCHW.to(self._device, non_blocking=True)
        if config.channels_last:
            x0_BCHW = x0_BCHW.contiguous(memory_format=torch.channels_last)
        t_B, noise_BCHW, labels_B = self._draw(state.images_seen, x0_BCHW, batch.labels_B)
        x_t_BCHW = self._process.add_noise(x0_BCHW, noise_BCHW, t_B)
        network, num_local = self._network_of(state), len(x0_BCHW)
        micro = config.micro_batch_size or num_local
        total = torch.zeros((), device=self._device)
        for lo in range(0, num_local, micro):
            part = slice(lo, lo + micro)
            labels = None if labels_B is None else labels_B[part]
            with nullcontext() if lo + micro >= num_local else self._without_exchange():
                with autocast(self._device, config):
                    prediction = network(x_t_BCHW[part], t_B[part], class_labels=labels).sample
                # In fp32: bf16 has 8 bits, too few for the difference of two numbers that are nearly equal.
                loss_B = self._process.loss(prediction.float(), x0_BCHW[part], noise_BCHW[part], t_B[part])
                # Over this worker's whole part, so that the gradients of its pieces add up to its own.
                loss = loss_B.sum() / num_local
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total / self._workers.world_size  # DDP divides the gradients

    def _draw(self, images_seen: int, x0_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """This worker's timesteps, noise and (partly hidden) labels of the step that starts at images_seen."""
        job, batch_size = self._job, len(x0_BCHW) * self._workers.world_size
        mine = self._workers.part_of(batch_size)
        where = (job.seed, *job.interval, images_seen)
        t_B, on_cpu = _draw_timesteps(job, images_seen, batch_size)
        hidden_B = torch.rand(batch_size, generator=on_cpu) < job.training.label_dropout
        # Noise is drawn where it is used: copying it would cost more than drawing it.
        on_device = torch.Generator(self._device).manual_seed(derive_seed("noise", *where))
        shape = (batch_size, *x0_BCHW.shape[1:])
        noise_BCHW = torch.randn(shape, generator=on_device, device=self._device)[mine]
        t_B = t_B[mine].to(self._device)
        if job.data.num_classes is None:
            return t_B, noise_BCHW, None
        labels_B = torch.where(hidden_B[mine], job.data.num_classes, labels_B)
        return t_B, noise_BCHW, labels_B.to(self._device)

    def _network_of(self, state: TrainState) -> Callable[..., Any]:
        """What a batch goes through: the network, with an exchange of gradients behind it, compiled."""
        if self._network is None:
            network = state.model
            if self._workers.world_size > 1:
                # Asked for, though there are no unused parameters: otherwise DDP lays gradients out anew after its
                # first step, and a resumed run of three workers would add them up in another order.
                network = DistributedDataParallel(
                    network,
                    process_group=self._workers.group,
                    find_unused_parameters=True,
                    gradient_as_bucket_view=True,
                )
                self._without_exchange = network.no_sync
            self._network = torch.compile(network) if self._job.training.compile else network
        return self._network


def _draw_timesteps(job: ExpertJob, images_seen: int, batch_size: int) -> tuple[Tensor, torch.Generator]:
    """Those of the step that starts at images_seen, and the generator for what is drawn after them."""
    generator = torch.Generator().manual_seed(derive_seed("timesteps", job.seed, *job.interval, images_seen))
    t_B = draw_timesteps(generator, job.interval, job.specialisation, job.diffusion.num_timesteps, batch_size)
    return t_B, generator


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
        from workloads.models.initial import check_initial

        check_initial(initial, self.job.model, **self.job.data.input_shape)

    def begin(self, device: torch.device, workers: Workers) -> tuple[TrainState, DenoisingStep]:
        """The state before the first step, and the step."""
        model = initial_model(self.job, device)
        state = TrainState(model, self.job.training, self.job.diffusion.num_timesteps)
        return state, DenoisingStep(self.job, device, workers)

    def drawn_at(self, images_seen: int) -> str:
        """The timesteps."""
        t_B, _ = _draw_timesteps(self.job, images_seen, self.job.training.batch_size)
        return f"timesteps {first_of(t_B.tolist())}"

    def trained_networks(self, work_dir: Path, device: torch.device) -> Iterator[tuple[Interval, nn.Module]]:
        """The one network, measured at all timesteps."""
        yield Interval(0, self.job.diffusion.num_timesteps), load_model(JobDir(work_dir).expert).to(device)

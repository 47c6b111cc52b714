"""One optimiser step of a remix."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workloads.config.strategy import RemixJob
from workloads.data.stream import Batch
from workloads.diffusion.process import DiffusionProcess
from workloads.seeding import derive_seed
from workloads.training.processes import Workers
from workloads.training.remix.gradients import StepGradients
from workloads.training.remix.state import RemixState
from workloads.training.schedule import learning_rate
from workloads.training.state import autocast

# Axes: B batch, C channels, H height, W width, G experts of a step, K bases, L layers.


def draw_experts(seed: int, num_experts: int, num_drawn: int, images_seen: int) -> list[int]:
    """Experts of the step that starts at images_seen: without repeats as long as there are enough.

    Every expert is as likely as any other; drawing without replacement is what lowers the variance of the
    coefficients' gradient against independent draws.
    """
    generator = torch.Generator().manual_seed(derive_seed("experts", seed, images_seen))
    experts: list[int] = []
    while len(experts) < num_drawn:
        experts += torch.randperm(num_experts, generator=generator).tolist()
    return experts[:num_drawn]


def prior_weight(strength: float, images_seen: int, total_images: int, schedule: str = "linear") -> float:
    """gamma: from `strength` linearly to exactly zero at the end of the budget, or constant."""
    if schedule == "constant":
        return strength
    return strength * max(0.0, 1.0 - images_seen / total_images)


class _Piece(NamedTuple):
    """Images lo to hi of this worker's part of the batch; one expert's."""

    group: int
    lo: int
    hi: int


class RemixStep:
    """One optimiser step on a batch in which every expert of the step has an equal part.

    Worker r of W has the r-th part of the batch. All draws are functions of the whole batch's place in training, so W
    changes nothing but the order of sums.
    """

    def __init__(self, job: RemixJob, device: torch.device, workers: Workers) -> None:
        self._job = job
        self._device = device
        self._workers = workers
        self._process = DiffusionProcess(job.diffusion, device)
        self._num_local = job.training.batch_size // workers.world_size
        self._buffers: StepGradients | None = None
        self._network: Callable[..., Any] | None = None

    def __call__(self, state: RemixState, batch: Batch) -> Tensor:
        job, seen = self._job, state.images_seen
        experts = draw_experts(job.seed, len(job.intervals), job.remix.experts_per_step, seen)
        alpha_GLK = state.mixer(torch.tensor(experts, device=self._device))
        if self._buffers is None:
            self._buffers = StepGradients(state, len(experts), self._device)
        loss = self._backward(state, batch, experts, alpha_GLK.detach(), self._buffers)
        self._workers.sum_(*self._buffers.exchanged)
        state.images_seen += job.training.batch_size
        self._update(state, alpha_GLK, self._buffers)
        return loss

    def _backward(
        self, state: RemixState, batch: Batch, experts: list[int], alpha_GLK: Tensor, buffers: StepGradients
    ) -> Tensor:
        """Fill the buffers with this worker's share of the gradients; return where the whole batch's loss will be."""
        config = self._job.training
        x0_BCHW = batch.images_BCHW.to(self._device, non_blocking=True)
        t_B, noise_BCHW, labels_B = self._draw(experts, state.images_seen, x0_BCHW, batch.labels_B)
        x_t_BCHW = self._process.add_noise(x0_BCHW, noise_BCHW, t_B)
        buffers.clear()
        mixed_in = None
        for group, lo, hi in self._pieces(len(experts)):
            if group != mixed_in:
                state.bases.mix(alpha_GLK[group])
                buffers.receive(group)
                mixed_in = group
            labels = None if labels_B is None else labels_B[lo:hi]
            with autocast(self._device, config):
                prediction = self._model(state)(x_t_BCHW[lo:hi], t_B[lo:hi], class_labels=labels).sample
            loss_B = self._process.loss(prediction.float(), x0_BCHW[lo:hi], noise_BCHW[lo:hi], t_B[lo:hi])
            # Over the whole batch: gradients of workers are summed, not averaged.
            loss = loss_B.sum() / config.batch_size
            loss.backward()  # type: ignore[no-untyped-call]
            buffers.take(group, loss.detach(), alpha_GLK)
        return buffers.loss

    def _update(self, state: RemixState, alpha_GLK: Tensor, buffers: StepGradients) -> None:
        """From summed gradients to new weights, coefficients and averages."""
        job, config, remix = self._job, self._job.training, self._job.remix
        weights_GLK = alpha_GLK.detach()
        # After the exchange, so that the norm is that of the whole batch whatever the number of workers.
        if config.clip_grad_norm is not None:
            norm = (buffers.shared_S.square().sum() + buffers.bases_squared_norm(weights_GLK)).sqrt()
            # 1e-6 as in torch's clip_grad_norm_.
            weights_GLK = buffers.scale(weights_GLK, (config.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        if state.coefficients:
            # The network saw the coefficients detached; here their gradient goes on to what they are made of.
            alpha_GLK.backward(buffers.alpha_GLK)  # type: ignore[no-untyped-call]
            strength = prior_weight(remix.prior_strength, state.images_seen, config.images, remix.prior_schedule)
            prior_loss = state.mixer.prior_loss()
            if strength > 0 and prior_loss is not None:
                (strength * prior_loss).backward()  # type: ignore[no-untyped-call]
        rate, num_shared = learning_rate(config, state.images_seen), int(bool(state.shared))
        shared, bases = state.optimizers[:num_shared], state.optimizers[num_shared : num_shared + remix.num_bases]
        for optimizer in shared:  # one, or none where every parameter is mixed
            _step(optimizer, rate)
        for index, optimizer in enumerate(bases):
            state.bases.vectors[index].grad = buffers.basis_gradient(index, weights_GLK)
            _step(optimizer, rate)
            state.bases.vectors[index].grad = None
        if state.coefficients:
            _step(state.optimizers[-1], rate * remix.coefficient_learning_rate / config.learning_rate)
            state.optimizers[-1].zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update(job.training.batch_size, state.images_seen)

    def _pieces(self, num_groups: int) -> list[_Piece]:
        """This worker's images, cut where the expert changes and where a micro batch is full."""
        batch_size, first = self._job.training.batch_size, self._workers.rank * self._num_local
        group_size = batch_size // num_groups
        cuts = {0, self._num_local, *(cut - first for cut in range(0, batch_size, group_size))}
        edges = sorted(cut for cut in cuts if 0 <= cut <= self._num_local)
        pieces = []
        for lo, hi in pairwise(edges):
            group, step = (first + lo) // group_size, self._job.training.micro_batch_size or hi - lo
            pieces += [_Piece(group, start, min(start + step, hi)) for start in range(lo, hi, step)]
        return pieces

    def _draw(
        self, experts: list[int], images_seen: int, x0_BCHW: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """This worker's part of the whole batch's timesteps, noise and (partly hidden) labels."""
        job, batch_size = self._job, self._job.training.batch_size
        mine = self._workers.part_of(batch_size)
        where = (job.seed, images_seen)
        on_cpu = torch.Generator().manual_seed(derive_seed("timesteps", *where))
        bounds = torch.tensor([job.intervals[expert] for expert in experts]).repeat_interleave(
            batch_size // len(experts), dim=0
        )
        lo_B, hi_B = bounds.unbind(1)
        place_B = torch.rand(batch_size, generator=on_cpu, dtype=torch.float64)
        t_B = lo_B + (place_B * (hi_B - lo_B)).long()
        hidden_B = torch.rand(batch_size, generator=on_cpu) < job.training.label_dropout
        on_device = torch.Generator(self._device).manual_seed(derive_seed("noise", *where))
        shape = (batch_size, *x0_BCHW.shape[1:])
        noise_BCHW = torch.randn(shape, generator=on_device, device=self._device)[mine]
        t_B = t_B[mine].to(self._device)
        if job.data.num_classes is None:
            return t_B, noise_BCHW, None
        labels_B = torch.where(hidden_B[mine], job.data.num_classes, labels_B)
        return t_B, noise_BCHW, labels_B.to(self._device)

    def _model(self, state: RemixState) -> Callable[..., Any]:
        if self._network is None:
            self._network = torch.compile(state.model) if self._job.training.compile else state.model
        return self._network


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()

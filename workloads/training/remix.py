"""Joint training of K bases and their coefficients (Remix-DiT, arXiv:2412.05628, Sec. 4).

All bases receive a multiple of one gradient: d beta_k = alpha_k d theta. So a step runs forward and backward through
the plain network once per expert, workers exchange min(G, K) gradients instead of K, and each basis's gradient exists
only while that basis is updated.
"""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from workloads.checkpoint import Checkpoint
from workloads.config.intervals import Interval
from workloads.config.job import RemixJob
from workloads.data.stream import Batch
from workloads.diffusion.process import DiffusionProcess
from workloads.errors import CheckpointError
from workloads.files import new_directory
from workloads.models.growth import grow, growth_metadata, is_remix
from workloads.models.remix import REMIX_WEIGHTS, Bases, build_mixer, mixed_names, remix_weights
from workloads.seeding import derive_seed
from workloads.training.ema import WeightAverage
from workloads.training.processes import Workers
from workloads.training.schedule import learning_rate
from workloads.training.state import adamw, autocast, initial_model

# Axes: B batch, C channels, H height, W width, G experts of a step, K bases, L layers, P mixed and S shared parameters.


class RemixState:
    """Bases, shared parameters, coefficients, their averages and optimisers."""

    def __init__(self, job: RemixJob, device: torch.device) -> None:
        config, remix = job.training, job.remix
        self.job = job
        self.images_seen = 0
        self.model = initial_model(job, device)
        names = mixed_names(self.model, remix.mixed)
        self.bases = Bases(self.model, remix.num_bases, names)
        torch.manual_seed(derive_seed("coefficients", job.seed))
        self.mixer = build_mixer(remix, list(job.intervals), len(self.bases.layers)).to(device)
        if job.initial is not None and is_remix(job.initial.path):
            grow(job.initial.path, self.model, self.bases, self.mixer, job.intervals)
        mixed = set(names)
        parameters = dict(self.model.named_parameters())
        self.shared = [value for name, value in parameters.items() if value.requires_grad and name not in mixed]
        self.mixed = [parameters[name] for name in names]
        self.coefficients = list(self.mixer.parameters())
        self.optimizers = [adamw(group, config) for group in self._groups() if group]
        self.average: WeightAverage | None = None
        if config.ema_halflife_images is not None:
            self.average = WeightAverage(
                self._trained(), halflife_images=config.ema_halflife_images, rampup=config.ema_rampup
            )

    def _groups(self) -> list[list[nn.Parameter]]:
        """What is updated together: the shared parameters, each basis by itself, the coefficients."""
        return [self.shared, *([vector] for vector in self.bases.vectors), self.coefficients]

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups() for parameter in group]

    @property
    def learning_rate(self) -> float:
        """Of the network."""
        rate: float = self.optimizers[0].param_groups[0]["lr"]
        return rate

    def checkpoint(self) -> Checkpoint:
        """A flat set of tensors from which `restore` continues bit for bit."""
        tensors: dict[str, Tensor] = {f"model.{index}": value for index, value in enumerate(self._trained())}
        if self.average is not None:
            tensors |= {f"average.{index}": value for index, value in enumerate(self.average.tensors)}
        for index, optimizer in enumerate(self.optimizers):
            for position, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{position}.{name}": value for name, value in moments.items()}
        return Checkpoint(self.images_seen, tensors)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises CheckpointError if it is of another remix."""
        tensors = checkpoint.tensors
        try:
            for index, parameter in enumerate(self._trained()):
                parameter.copy_(tensors[f"model.{index}"])
            if self.average is not None:
                for index, target in enumerate(self.average.tensors):
                    target.copy_(tensors[f"average.{index}"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another remix: {error}") from None
        for index, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, number, *rest = name.split(".")
                if kind == "optimizer" and int(number) == index:
                    moments.setdefault(int(rest[0]), {})[rest[1]] = tensor
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        self.images_seen = checkpoint.images_seen

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights, if any, in place; the end of training."""
        if self.average is not None:
            for parameter, average in zip(self._trained(), self.average.tensors, strict=True):
                parameter.copy_(average)

    def networks(self) -> Iterator[tuple[Interval, nn.Module]]:
        """Every expert's interval and network, each valid until the next is asked for."""
        table_NLK = self.mixer.table()
        for index, interval in enumerate(self.job.intervals):
            self.bases.mix(table_NLK[index])
            yield interval, self.model

    def save(self, work_dir: Path) -> Path:
        """Write work_dir/remix and return the file with the weights."""
        with new_directory(work_dir / "remix") as scratch:
            model: Any = self.model
            model.save_config(scratch)
            tensors = remix_weights(self.model, self.bases, self.mixer.table())
            safetensors.torch.save_file(tensors, scratch / REMIX_WEIGHTS, growth_metadata(self.job.intervals))
        return work_dir / "remix" / REMIX_WEIGHTS


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


def prior_weight(strength: float, images_seen: int, total_images: int) -> float:
    """gamma: from `strength` linearly to exactly zero at the end of the budget."""
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
        self._buffers: _Buffers | None = None
        self._network: Callable[..., Any] | None = None

    def __call__(self, state: RemixState, batch: Batch) -> Tensor:
        job, seen = self._job, state.images_seen
        experts = draw_experts(job.seed, len(job.intervals), job.remix.experts_per_step, seen)
        alpha_GLK = state.mixer(torch.tensor(experts, device=self._device))
        if self._buffers is None:
            self._buffers = _Buffers(state, len(experts), self._device)
        loss = self._backward(state, batch, experts, alpha_GLK.detach(), self._buffers)
        self._workers.sum_(*self._buffers.exchanged)
        state.images_seen += job.training.batch_size
        self._update(state, alpha_GLK, self._buffers)
        return loss

    def _backward(
        self, state: RemixState, batch: Batch, experts: list[int], alpha_GLK: Tensor, buffers: "_Buffers"
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
            loss = loss_B.sum() / config.batch_size
            loss.backward()  # type: ignore[no-untyped-call]
            buffers.take(group, loss.detach(), alpha_GLK)
        return buffers.loss

    def _update(self, state: RemixState, alpha_GLK: Tensor, buffers: "_Buffers") -> None:
        """From summed gradients to new weights, coefficients and averages."""
        job, config, remix = self._job, self._job.training, self._job.remix
        weights_GLK = alpha_GLK.detach()
        if config.clip_grad_norm is not None:
            norm = (buffers.shared_S.square().sum() + buffers.bases_squared_norm(weights_GLK)).sqrt()
            weights_GLK = buffers.scale(weights_GLK, (config.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        if state.coefficients:
            alpha_GLK.backward(buffers.alpha_GLK)  # type: ignore[no-untyped-call]
            strength = prior_weight(remix.prior_strength, state.images_seen, config.images)
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
        mine = slice(self._workers.rank * self._num_local, (self._workers.rank + 1) * self._num_local)
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


class _Buffers:
    """Gradients of a step in one stretch of memory, so that workers sum them in one operation.

    `sets` holds one gradient per expert of the step where those are fewer than bases, else one per basis.
    """

    def __init__(self, state: RemixState, num_groups: int, device: torch.device) -> None:
        self._state, bases = state, state.bases
        num_bases, num_shared = len(bases.vectors), sum(parameter.numel() for parameter in state.shared)
        self.by_expert = num_groups <= num_bases
        num_sets = min(num_groups, num_bases)
        flat = torch.zeros(num_shared + num_sets * bases.size, device=device)
        self.shared_S, self.sets = flat[:num_shared], flat[num_shared:].view(num_sets, bases.size)
        small = torch.zeros(1 + num_groups * state.mixer.rows * num_bases, device=device)
        self.loss, self.alpha_GLK = small[0], small[1:].view(num_groups, state.mixer.rows, num_bases)
        self.exchanged = (flat, small)
        # One basis's gradient may take the mixture's place, which the next step writes anew; one mixture's, where sets
        # are per basis, is there at the same time as the mixture.
        self._spare_P = bases.mixture_P if self.by_expert else torch.zeros(bases.size, device=device)
        self._views = [bases.views(row) for row in self.sets] if self.by_expert else [bases.views(self._spare_P)]
        start = 0
        for parameter in state.shared:
            parameter.grad = self.shared_S[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def clear(self) -> None:
        for tensor in self.exchanged:
            tensor.zero_()

    def receive(self, group: int) -> None:
        """Let the backward pass add the mixed parameters' gradient where this group's belongs."""
        views = self._views[group if self.by_expert else 0]
        for parameter, view in zip(self._state.mixed, views, strict=True):
            parameter.grad = view

    def take(self, group: int, loss: Tensor, alpha_GLK: Tensor) -> None:
        """After a piece's backward pass: what it says about the coefficients and, if kept so, about the bases."""
        bases, rows = self._state.bases, self._state.mixer.rows
        self.loss += loss
        if self.by_expert:  # the sum over the group's pieces so far replaces what was there
            self.alpha_GLK[group] = bases.coefficient_gradient(self.sets[group], rows)
            return
        self.alpha_GLK[group] += bases.coefficient_gradient(self._spare_P, rows)
        bases.add_to_bases(self.sets, self._spare_P, alpha_GLK[group])
        self._spare_P.zero_()

    def bases_squared_norm(self, alpha_GLK: Tensor) -> Tensor:
        """sum_k |d beta_k|^2."""
        if self.by_expert:
            return self._state.bases.squared_norm(self.sets, alpha_GLK)
        return self.sets.square().sum()

    def scale(self, alpha_GLK: Tensor, factor: Tensor) -> Tensor:
        """Make all gradients smaller; the coefficients to build those of the bases with."""
        self.shared_S.mul_(factor)
        if self.by_expert:
            return alpha_GLK * factor  # cheaper than the gradients themselves
        self.sets.mul_(factor)
        return alpha_GLK

    def basis_gradient(self, index: int, alpha_GLK: Tensor) -> Tensor:
        """d beta_k, valid until the next is asked for."""
        if self.by_expert:
            self._state.bases.basis_gradient(self.sets, alpha_GLK[:, :, index], self._spare_P)
            return self._spare_P
        return self.sets[index]


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


class CoefficientHistory:
    """Appends the table of coefficients (averaged over layers) to a file every `every_images` images."""

    def __init__(self, file: Path, *, start_images: int, every_images: int) -> None:
        self._file, self._every_images, self._written_images = file, every_images, start_images
        kept = [entry for entry in read_coefficients(file) if entry["images_seen"] <= start_images]
        file.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def __call__(self, state: Any, loss: Tensor) -> None:  # noqa: ARG002
        if state.images_seen - self._written_images >= self._every_images:
            self._written_images = state.images_seen
            table_NK = state.mixer.table().mean(1).cpu()
            entry = {"images_seen": state.images_seen, "coefficients": table_NK.round(decimals=5).tolist()}
            with self._file.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def read_coefficients(file: Path) -> list[dict[str, Any]]:
    """Entries {"images_seen", "coefficients": N x K}; a last line cut short by a crash is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]

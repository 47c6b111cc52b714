"""What a network draws in the course of training: the same noise, the same images, as PNG files beside its weights."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.config.evaluation import SamplingConfig
from workloads.config.intervals import Interval
from workloads.config.job import Job
from workloads.data.prepared import PreparedDataset
from workloads.diffusion.process import DiffusionProcess, split_variance
from workloads.diffusion.sampling import sample
from workloads.evaluation.generate import image_seeds, labels_of
from workloads.files import new_file
from workloads.grid import sample_grid
from workloads.places import DENOISED, PICTURE_KINDS, SAMPLES, JobDir
from workloads.training.loss_by_timestep import fixed_examples
from workloads.training.processes import Workers
from workloads.training.state import State, autocast

# Axes: B batch, C channels, H height, W width.

Rows = dict[str, Tensor]
"""(B, C, H, W) each, one below the other, by what is written in front."""

NUM_IMAGES = 10
NUM_STEPS = 8
"""Of DPM-Solver++, without guidance: enough to see how far training is, at a sixth of what a score's samples cost."""

MAX_SHOWN = 4
"""Of more experts than this, so many are shown, evenly from the clean end to the noisy one."""

LATENT_BOUND = 3.0
"""Scaled latents are about standard normal."""

MAX_SHARE = 0.008
"""Of training's forward and backward passes, the latter twice as dear as the former. By benchmarks/pictures.py, all
else that sampling does makes up to half as much again of it; with that, too, it is to be less than 1 %."""


def shown_of(intervals: Sequence[Interval]) -> list[Interval]:
    """The experts whose denoising is shown."""
    places = np.linspace(0, len(intervals) - 1, min(MAX_SHOWN, len(intervals))).round().astype(int)
    return [intervals[place] for place in places]


def denoises_all(job: Job, intervals: Sequence[Interval]) -> bool:
    """Whether the networks of the job draw images by themselves."""
    return intervals[0].lo == 0 and intervals[-1].hi == job.diffusion.num_timesteps


def picture_interval_images(job: Job, intervals: Sequence[Interval], world_size: int, *, on_gpu: bool) -> int | None:
    """Training images from one picture to the next, the first being before training; None if it is too short for two.

    A GPU may take as long for few images as for a batch. All workers wait for the first.
    """
    num_passes = len(shown_of(intervals)) + NUM_STEPS * denoises_all(job, intervals)
    pass_images = max(NUM_IMAGES * world_size, job.training.batch_size if on_gpu else 0)
    cost_images = num_passes * pass_images / 3
    num_later = min(job.training.num_pictures, math.floor(MAX_SHARE * job.training.images / cost_images) - 1)
    return math.ceil(job.training.images / num_later) if num_later > 0 else None


class PictureHook:
    """Writes pictures whenever a multiple of the interval is passed, so that a resumed run writes the same ones."""

    def __init__(
        self,
        job: Job,
        intervals: Sequence[Interval],
        dataset: PreparedDataset,
        place: JobDir,
        device: torch.device,
        workers: Workers,
        *,
        indices: np.ndarray,
        start_images: int,
        before_write: Callable[[], None],
    ) -> None:
        """intervals: those of the job's experts; indices: images to take the denoised ones from."""
        self._job, self._place, self._device = job, place, device
        self._dataset, self._indices = dataset, indices
        self._process = DiffusionProcess(job.diffusion, device)
        self._intervals = shown_of(intervals)
        self._draws = denoises_all(job, intervals)
        self._every_images = picture_interval_images(job, intervals, workers.world_size, on_gpu=device.type != "cpu")
        self._before_write, self._seen_images = before_write, start_images
        for kind in PICTURE_KINDS:
            for images_seen, file in place.pictures(kind).items():
                # Those past the checkpoint are about to be made again.
                if images_seen > start_images:
                    file.unlink()

    def begin(self, state: State) -> None:
        """What an untrained network draws; MLflow's slider begins at step 0."""
        if state.images_seen == 0 and self._every_images is not None:
            self._draw(state)

    def __call__(self, state: State, loss: Tensor) -> None:  # noqa: ARG002
        seen_images, self._seen_images = self._seen_images, state.images_seen
        every_images = self._every_images
        if every_images is not None and state.images_seen // every_images > seen_images // every_images:
            self._draw(state)

    def _draw(self, state: State) -> None:
        with torch.inference_mode(), autocast(self._device, self._job.training), state.averaged():
            drawn = {SAMPLES: self._samples(state)} if self._draws else {}
            drawn[DENOISED] = self._denoised(state)
        self._before_write()
        is_latent = self._dataset.manifest.latent is not None
        for kind, rows in drawn.items():
            _write(self._place.picture(kind, state.images_seen), rows, is_latent=is_latent)

    @cached_property
    def _examples(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, noise and labels, the same every time."""
        ((batch, noise_BCHW),) = fixed_examples(
            self._dataset, num_images=NUM_IMAGES, seed=self._job.seed, batch_size=NUM_IMAGES, indices=self._indices
        )
        labels_B = None if self._job.data.num_classes is None else batch.labels_B.to(self._device)
        return batch.images_BCHW.to(self._device), noise_BCHW.to(self._device), labels_B

    def _samples(self, state: State) -> Rows:
        """From noise that is always the same, of each class in turn where there are classes."""
        job = self._job
        indices, num_classes = range(NUM_IMAGES), job.data.num_classes
        drawn_BCHW = sample(
            lambda x_BCHW, timestep, labels_B: self._predict(state, x_BCHW, timestep, labels_B),
            shape_CHW=self._dataset.shape,
            diffusion=job.diffusion,
            sampling=SamplingConfig(sampler="dpm++", num_steps=min(NUM_STEPS, job.diffusion.num_timesteps)),
            seeds=image_seeds(job.seed, indices),
            labels_B=None if num_classes is None else labels_of(indices, num_classes),
            null_label=num_classes,
            device=self._device,
            clip=self._dataset.manifest.latent is None,
        )
        return {"": drawn_BCHW}

    def _denoised(self, state: State) -> Rows:
        """Training images; for each expert, what it gets at the middle of its interval and what it makes of that."""
        x0_BCHW, noise_BCHW, labels_B = self._examples
        rows = {"images": x0_BCHW}
        for lo, hi in self._intervals:
            timestep = (lo + hi) // 2
            t_B = torch.full((NUM_IMAGES,), timestep, device=self._device)
            x_t_BCHW = self._process.add_noise(x0_BCHW, noise_BCHW, t_B)
            mean_BCHW, _ = split_variance(self._predict(state, x_t_BCHW, timestep, labels_B), x0_BCHW.shape[1])
            rows[f"t = {timestep}"] = x_t_BCHW
            rows[f"{timestep} denoised"] = self._process.estimate(mean_BCHW, x_t_BCHW, t_B)
        return rows

    def _predict(self, state: State, x_BCHW: Tensor, timestep: float, labels_B: Tensor | None) -> Tensor:
        network: Any = state.network_at(timestep)
        network.eval()
        t_B = torch.full((len(x_BCHW),), timestep, device=self._device)
        output_BCHW: Tensor = network(x_BCHW, t_B, class_labels=labels_B).sample
        network.train()
        return output_BCHW.float()


def _write(file: Path, rows: Rows, *, is_latent: bool) -> None:
    """A row of images each, and one alone as two, for MLflow shows pictures in a square.

    Of latents, the first channels as colours: no decoder is needed to see what they are of.
    """
    x_NCHW = torch.cat(list(rows.values())).float()
    if is_latent:
        x_NCHW = x_NCHW[:, : 3 if x_NCHW.shape[1] >= 3 else 1] / LATENT_BOUND
    images_NCHW = ((x_NCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    labels = list(rows) if len(rows) > 1 else None
    num_columns = NUM_IMAGES if labels else NUM_IMAGES // 2
    with new_file(file) as scratch:
        sample_grid(images_NCHW, num_columns=num_columns, labels=labels).save(scratch, format="png")

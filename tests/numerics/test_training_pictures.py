"""Pictures in the course of training: they change no weights, a resumed run makes the same, and they show what is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from workloads.config import Job, RunConfig
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.diffusion.process import scheduler_fields
from workloads.ensemble import Ensemble, write_ensemble
from workloads.grid import GAP_PX
from workloads.models.build import load_model
from workloads.places import DENOISED, PICTURE_KINDS, SAMPLES, JobDir
from workloads.training import pictures
from workloads.training.job import train_job
from workloads.training.loss_by_timestep import fixed_examples
from workloads.training.result import TrainingStopped

SIZE = 8
DIT = {"kind": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2}
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"kind": "single"},
    "expert": {"kind": "independent", "num_experts": 2},
    "remix": {"kind": "remix", "num_experts": 6, "num_bases": 3, "experts_per_step": 2},
}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a second are too short for pictures otherwise."""
    monkeypatch.setattr(pictures, "MAX_SHARE", 1e6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=SIZE), tmp_path_factory.mktemp("data"))


def config_of(strategy: str, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": SIZE, "class_conditional": True},
            "diffusion": {"objective": "v_prediction"},
            "model": DIT,
            "strategy": STRATEGIES[strategy],
            "training": {
                "images": 96,
                "batch_size": 16,
                "learning_rate": 1e-2,
                "checkpoint_every_images": 32,
                "log_every_images": 32,
                "ema_halflife_images": 32,
                "num_pictures": 3,
                **training,
            },
            "evaluation": "demo",
        }
    )


def job_of(strategy: str, dataset: PreparedDataset, **training: Any) -> Job:
    config = config_of(strategy, **training)
    return config.jobs(dataset.spec(config.data))[-1]


def files_of(folder: Path) -> dict[str, bytes]:
    place = JobDir(folder)
    return {file.name: file.read_bytes() for kind in PICTURE_KINDS for file in place.pictures(kind).values()}


def cells(file: Path, num_rows: int) -> np.ndarray:
    """The grey images of a grid, (rows, columns, H, W), without what is written in front."""
    grid = np.asarray(Image.open(file).convert("L"))
    cell_px = (grid.shape[0] - GAP_PX) // num_rows
    scale = (cell_px - GAP_PX) // SIZE
    num_columns = pictures.NUM_IMAGES // (1 if file.name.startswith(DENOISED) else 2)
    left = grid.shape[1] - GAP_PX - num_columns * cell_px
    starts = range(left + GAP_PX, grid.shape[1] - GAP_PX, cell_px)
    rows = [grid[GAP_PX + row * cell_px :][: SIZE * scale : scale] for row in range(num_rows)]
    return np.stack([np.stack([row[:, x : x + SIZE * scale : scale] for x in starts]) for row in rows])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_are_the_same_with_and_without_and_after_a_stop(
    strategy: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    job, without = job_of(strategy, dataset), job_of(strategy, dataset, num_pictures=0)
    assert job.key == without.key
    plain = train_job(without, dataset.path, tmp_path / "without")
    assert not files_of(tmp_path / "without")
    result = train_job(job, dataset.path, tmp_path / "with")
    assert result.weights_sha256 == plain.weights_sha256
    made = files_of(tmp_path / "with")
    kinds = {DENOISED} if strategy == "expert" else {DENOISED, SAMPLES}
    assert set(made) == {f"{kind}-{images:012d}.png" for kind in kinds for images in (0, 32, 64, 96)}

    # Stopped between a picture and the end: what a dead process drew past its checkpoint is made again.
    calls = iter(range(100))
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path / "broken", should_stop=lambda: next(calls) == 2)
    JobDir(tmp_path / "broken").picture(DENOISED, 80).write_bytes(b"of an attempt that is over")
    assert train_job(job, dataset.path, tmp_path / "broken").weights_sha256 == plain.weights_sha256
    assert files_of(tmp_path / "broken") == made


def test_the_last_samples_are_those_of_the_ensemble(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Drawn with the averaged weights, by experts as their intervals have them."""
    for strategy in ("single", "remix"):
        config, job = config_of(strategy), job_of(strategy, dataset)
        train_job(job, dataset.path, tmp_path / strategy)
        ensemble: Ensemble = write_ensemble(tmp_path / f"{strategy}-e", config, dataset, [tmp_path / strategy])
        drawn = ensemble.sample(
            pictures.NUM_IMAGES, seed=job.seed, sampler="dpm++", num_steps=pictures.NUM_STEPS, guidance_scale=1
        )
        shown = cells(JobDir(tmp_path / strategy).picture(SAMPLES, 96), 2).reshape(-1, SIZE, SIZE)
        np.testing.assert_array_equal(shown, drawn.images_NCHW[:, 0])


def test_the_last_denoised_images_are_what_diffusers_makes_of_them(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_of("expert", dataset)
    train_job(job, dataset.path, tmp_path)
    indices = dataset.split(0).training
    ((batch, noise),) = fixed_examples(dataset, num_images=10, seed=job.seed, batch_size=10, indices=indices)
    scheduler: Any = DDPMScheduler(**scheduler_fields(job.diffusion), clip_sample=False)
    timestep = 750  # the middle of [500, 1000)
    t_B = torch.full((10,), timestep)
    x_t = scheduler.add_noise(batch.images_BCHW, noise, t_B)
    network: Any = load_model(JobDir(tmp_path).expert).eval()
    with torch.inference_mode():
        prediction = network(x_t, t_B, class_labels=batch.labels_B).sample
    x_0 = scheduler.step(prediction, timestep, x_t).pred_original_sample
    expected = [((x.clamp(-1, 1) + 1) * 127.5).round()[:, 0].numpy() for x in (batch.images_BCHW, x_t, x_0)]
    shown = cells(JobDir(tmp_path).picture(DENOISED, 96), 3)
    # diffusers works in another order of operations: a value at the edge of two may fall to the other.
    assert np.abs(shown - np.stack(expected)).max() <= 1


def test_a_short_training_has_fewer_and_a_long_one_as_many_as_were_asked_for(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    cases = ((64_000, 32, 2, False), (64_000, 32, 2, True), (10**8, 256, 8, True))
    for images, batch_size, world_size, on_gpu in cases:
        job = job_of("remix", dataset, images=images, batch_size=batch_size, num_pictures=10)
        every_images = pictures.picture_interval_images(job, job.intervals, world_size, on_gpu=on_gpu)
        assert every_images is not None
        # 4 experts shown and 8 steps, each a third of what a step of training takes, for all workers.
        cost_images = (4 + 8) / 3 * max(batch_size if on_gpu else 0, 10 * world_size)
        num_pictures = images // every_images + 1
        assert num_pictures * cost_images <= 0.008 * images
        assert num_pictures == 11 or (num_pictures + 1) * cost_images >= 0.008 * images
    short = job_of("remix", dataset, images=1_000, num_pictures=10)
    assert pictures.picture_interval_images(short, short.intervals, 1, on_gpu=False) is None

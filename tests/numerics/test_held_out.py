"""Images kept out of training, and the loss on them against loops in float64."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from workloads.analysis.curves import LossCurve, ensemble_loss, newest_curve
from workloads.analysis.held_out import held_out_curve
from workloads.config import DataSpec, ExpertJob, Interval, IntervalTable, Job, RunConfig
from workloads.config.data import CIFAR10Data
from workloads.config.evaluation import HeldOutSpec
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream
from workloads.errors import CheckpointError, ConfigError, DataError
from workloads.models.build import WEIGHTS, load_model, new_model
from workloads.places import JobDir
from workloads.training.job import train_job
from workloads.training.loss_by_timestep import fixed_examples
from workloads.training.result import TrainingStopped

NUM_IMAGES, NUM_HELD_OUT, NUM_TIMESTEPS = 60, 12, 10
INDEPENDENT: dict[str, Any] = {"kind": "independent", "num_experts": 2}
REMIX: dict[str, Any] = {"kind": "remix", "cuts": [1, 5], "num_bases": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of noise, no two alike."""
    folder = tmp_path_factory.mktemp("noise")
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", train_images=images, train_labels=np.arange(NUM_IMAGES) % 10)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> PreparedDataset:
    return ensure_prepared(CIFAR10Data(path=folder / "images.npz", image_size=8), folder / "data")


def job_for(dataset: PreparedDataset, folder: Path, strategy: dict[str, Any], *, held_out: int, seed: int = 0) -> Job:
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {
                "kind": "cifar10",
                "path": folder / "images.npz",
                "image_size": 8,
                "class_conditional": True,
                "held_out": held_out,
            },
            "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
            "diffusion": {"num_timesteps": NUM_TIMESTEPS, "beta_start": 0.01, "beta_end": 0.3},
            "strategy": strategy,
            "training": {"images": 192, "batch_size": 16, "learning_rate": 0.03, "ema_halflife_images": None},
            "evaluation": {
                "name": "tiny",
                "extractor": "fashion-cnn",
                "num_samples": 4,
                "sampling": {"num_steps": 4},
            },
            "seed": seed,
        }
    )
    return config.jobs(dataset.spec(config.data))[0]


@pytest.fixture(scope="module")
def expert(dataset: PreparedDataset, folder: Path) -> tuple[Path, Job]:
    job = job_for(dataset, folder, INDEPENDENT, held_out=NUM_HELD_OUT)
    train_job(job, dataset.path, folder / "expert")
    return folder / "expert", job


@pytest.fixture(scope="module")
def remix(dataset: PreparedDataset, folder: Path) -> tuple[Path, Job]:
    job = job_for(dataset, folder, REMIX, held_out=NUM_HELD_OUT)
    train_job(job, dataset.path, folder / "remix")
    return folder / "remix", job


def rows(images_BCHW: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images_BCHW]


def stored(dataset: PreparedDataset, indices: np.ndarray) -> list[bytes]:
    return rows(torch.from_numpy(dataset.images(indices)).float().div(127.5).sub(1))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_never_sees_a_held_out_image_and_all_others_once_an_epoch(
    dataset: PreparedDataset, world_size: int
) -> None:
    training, held_out = dataset.split(NUM_HELD_OUT)
    assert sorted([*training, *held_out]) == list(range(NUM_IMAGES))
    assert len(held_out) == NUM_HELD_OUT
    for seed in (0, 1):
        ranks = [
            BatchStream(dataset, batch_size=4, seed=seed, rank=rank, world_size=world_size, indices=training)
            for rank in range(world_size)
        ]
        for epoch in range(3):
            num_steps = len(training) // (4 * world_size)
            first = epoch * num_steps
            seen: list[bytes] = []
            for step in range(first, first + num_steps):
                for rank in ranks:
                    seen += rows(rank.at(4 * world_size * step).images_BCHW)
            assert sorted(seen) == sorted(stored(dataset, training))
            assert not set(seen) & set(stored(dataset, held_out))


def test_a_job_reads_no_held_out_image_and_resumes_bit_for_bit(
    dataset: PreparedDataset, folder: Path, expert: tuple[Path, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every index the data set is asked for, in four epochs of training and the curve after them."""
    work_dir, job = expert
    asked: set[int] = set()
    read = PreparedDataset.images

    def listen(self: PreparedDataset, indices: np.ndarray) -> np.ndarray:
        asked.update(indices.tolist())
        return read(self, indices)

    monkeypatch.setattr(PreparedDataset, "images", listen)
    calls = iter(range(100))
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path, should_stop=lambda: next(calls) == 2)
    train_job(job, dataset.path, tmp_path)
    assert asked == set(dataset.split(NUM_HELD_OUT).training.tolist())
    broken, unbroken = (safetensors.torch.load_file(path / "expert" / WEIGHTS) for path in (tmp_path, work_dir))
    assert all(torch.equal(value, broken[name]) for name, value in unbroken.items())


def test_the_choice_depends_on_two_numbers_only_and_grows(dataset: PreparedDataset, tmp_path: Path) -> None:
    images = np.zeros((NUM_IMAGES, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images, train_labels=np.zeros(NUM_IMAGES, int))
    other = ensure_prepared(CIFAR10Data(path=tmp_path / "images.npz", image_size=8), tmp_path / "data")
    assert np.array_equal(other.split(NUM_HELD_OUT).held_out, dataset.split(NUM_HELD_OUT).held_out)
    assert set(dataset.split(5).held_out) < set(dataset.split(NUM_HELD_OUT).held_out)
    assert np.array_equal(dataset.split(0).training, np.arange(NUM_IMAGES))


def test_holding_out_everything_is_refused(dataset: PreparedDataset, folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.held_out is 60, but the data has 60 images; hold out fewer"):
        job_for(dataset, folder, INDEPENDENT, held_out=NUM_IMAGES)
    assert job_for(dataset, folder, INDEPENDENT, held_out=NUM_IMAGES - 1).data.held_out == NUM_IMAGES - 1


def test_a_key_knows_of_held_out_images_only_if_there_are_some() -> None:
    """The three literals are what these jobs were called before there was such a field: the store must find them."""
    base = {
        "name": "keys",
        "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "training": {"images": 96, "batch_size": 16},
        "evaluation": "demo",
    }
    experts = RunConfig.model_validate(base | {"strategy": INDEPENDENT})
    remix = RunConfig.model_validate(base | {"strategy": {"kind": "remix", "num_experts": 4, "num_bases": 2}})

    def keys(held_out: int) -> list[str]:
        data = DataSpec(fingerprint="f" * 64, channels=1, image_size=8, num_classes=10, held_out=held_out)
        return [job.key for config in (experts, remix) for job in config.jobs(data)]

    assert keys(0) == ["2539abdc244be144", "97e85653ecad152f", "b0406991dbb2a1d5"]
    assert len({*keys(0), *keys(5), *keys(6)}) == 9


def squared_errors(dataset: PreparedDataset, job: Job, networks: dict[Interval, nn.Module], seed: int) -> np.ndarray:
    """(held-out images, T): every image at every timestep, by the closed form of x_t, one at a time in float64."""
    held_out = dataset.split(NUM_HELD_OUT).held_out
    parts = list(fixed_examples(dataset, num_images=NUM_HELD_OUT, seed=seed, indices=held_out))
    images, labels = (torch.cat([batch[index] for batch, _ in parts]) for index in (0, 1))
    noise = torch.cat([noise_BCHW for _, noise_BCHW in parts]).double()
    assert sorted(rows(images)) == sorted(stored(dataset, held_out))
    abar = torch.cumprod(1 - torch.linspace(0.01, 0.3, NUM_TIMESTEPS, dtype=torch.float64), 0)
    errors = np.empty((NUM_HELD_OUT, NUM_TIMESTEPS))
    for interval, network in networks.items():
        model: Any = network.double().eval()
        for t in range(*interval):
            for index in range(NUM_HELD_OUT):
                x_t = abar[t].sqrt() * images[index].double() + (1 - abar[t]).sqrt() * noise[index]
                with torch.no_grad():
                    found = model(x_t[None], torch.tensor([t]), class_labels=labels[index : index + 1]).sample[0]
                errors[index, t] = float((found - noise[index]).square().mean())
    return errors


def expected(errors: np.ndarray, parts: list[tuple[Interval, int]], num_bins: int) -> list[float]:
    """Parts (timesteps, bin) of which each shows image i of n at the timestep (i + 1/2) / n of the way through."""
    num_images = len(errors)
    totals, sizes = [0.0] * num_bins, [0] * num_bins
    for (lo, hi), index in parts:
        shown_at = [lo + int((image + 0.5) / num_images * (hi - lo)) for image in range(num_images)]
        totals[index] += (hi - lo) * float(np.mean([errors[image, t] for image, t in enumerate(shown_at)]))
        sizes[index] += hi - lo
    return [total / size for total, size in zip(totals, sizes, strict=True)]


def test_an_experts_curve_is_the_mean_of_a_plain_loop(dataset: PreparedDataset, expert: tuple[Path, Job]) -> None:
    work_dir, job = expert
    assert isinstance(job, ExpertJob)
    errors = squared_errors(dataset, job, {Interval(0, NUM_TIMESTEPS): load_model(work_dir / "expert")}, seed=3)
    fine = held_out_curve(work_dir, job, dataset.path, HeldOutSpec(num_bins=NUM_TIMESTEPS, seed=3))
    assert fine.edges == tuple(range(NUM_TIMESTEPS + 1))
    np.testing.assert_allclose(fine.losses, errors.mean(0), rtol=1e-5)  # float32 network
    coarse = held_out_curve(work_dir, job, dataset.path, HeldOutSpec(num_images=999, num_bins=3, seed=3))
    assert coarse.edges == (0, 3, 6, 10)
    bins = [(Interval(0, 3), 0), (Interval(3, 6), 1), (Interval(6, 10), 2)]
    np.testing.assert_allclose(coarse.losses, expected(errors, bins, 3), rtol=1e-5)


def remix_experts(work_dir: Path, job: Job) -> dict[Interval, nn.Module]:
    """sum_k alpha_ik beta_k of every tensor, from the file alone; coefficients are shared by all layers here."""
    tensors = safetensors.torch.load_file(work_dir / "remix" / "remix.safetensors")
    networks: dict[Interval, nn.Module] = {}
    for index, interval in enumerate(IntervalTable([1, 5], NUM_TIMESTEPS)):
        model: Any = new_model(work_dir / "remix")
        mixed = {
            name.removeprefix("bases."): torch.einsum("k,k...->...", tensors["coefficients"][index, 0], bases)
            for name, bases in tensors.items()
            if name.startswith("bases.")
        }
        shared = {name.removeprefix("shared."): value for name, value in tensors.items() if name.startswith("shared.")}
        model.load_state_dict({**model.state_dict(), **shared, **mixed})
        networks[interval] = model
    return networks


def test_a_remix_is_measured_with_the_owner_of_each_timestep(dataset: PreparedDataset, remix: tuple[Path, Job]) -> None:
    work_dir, job = remix
    experts = remix_experts(work_dir, job)
    errors = squared_errors(dataset, job, experts, seed=0)
    first = squared_errors(dataset, job, {Interval(0, NUM_TIMESTEPS): experts[Interval(0, 1)]}, seed=0)
    assert (np.abs(first.mean(0) / errors.mean(0) - 1)[1:] > 1e-4).all()  # it matters who is asked
    fine = held_out_curve(work_dir, job, dataset.path, HeldOutSpec(num_bins=NUM_TIMESTEPS))
    np.testing.assert_allclose(fine.losses, errors.mean(0), rtol=1e-5)
    thirds = held_out_curve(work_dir, job, dataset.path, HeldOutSpec(num_bins=3))
    parts = [(Interval(0, 1), 0), (Interval(1, 3), 0), (Interval(3, 5), 1), (Interval(5, 6), 1), (Interval(6, 10), 2)]
    np.testing.assert_allclose(thirds.losses, expected(errors, parts, 3), rtol=1e-5)


def test_a_curve_is_measured_once_and_a_damaged_one_again(
    dataset: PreparedDataset, expert: tuple[Path, Job], tmp_path: Path
) -> None:
    work_dir, job = tmp_path / "expert", expert[1]
    shutil.copytree(expert[0], work_dir)
    shutil.rmtree(JobDir(work_dir).curves, ignore_errors=True)
    assert newest_curve(work_dir) is None
    spec = HeldOutSpec(num_images=4, num_bins=2)
    curve = held_out_curve(work_dir, job, dataset.path, spec)
    (file,) = JobDir(work_dir).curves.iterdir()
    assert newest_curve(work_dir) == curve == LossCurve.from_json(json.loads(file.read_text()))
    text = file.read_text()
    for damaged in (text[:-10], "", "[]", '{"edges": [0, 10], "losses": [1.0, 2.0]}'):
        file.write_text(damaged)
        assert newest_curve(work_dir) is None
        assert held_out_curve(work_dir, job, dataset.path, spec) == curve
        assert file.read_text() == text
    assert held_out_curve(work_dir, job, Path("/nowhere"), spec) == curve  # where there is no data
    with pytest.raises(DataError):
        held_out_curve(work_dir, job, Path("/nowhere"), HeldOutSpec(num_images=5, num_bins=2))


def test_what_cannot_be_measured_is_named(
    dataset: PreparedDataset, folder: Path, expert: tuple[Path, Job], tmp_path: Path
) -> None:
    none = job_for(dataset, folder, INDEPENDENT, held_out=0)
    with pytest.raises(ConfigError, match=r"data\.held_out is 0; set it"):
        held_out_curve(tmp_path, none, dataset.path, HeldOutSpec())
    with pytest.raises(CheckpointError, match="train it first"):
        held_out_curve(tmp_path, expert[1], dataset.path, HeldOutSpec())
    other = job_for(dataset, folder, INDEPENDENT, held_out=NUM_HELD_OUT, seed=1)
    with pytest.raises(CheckpointError, match="train it first"):
        held_out_curve(expert[0], other, dataset.path, HeldOutSpec())


def test_an_ensembles_loss_is_the_mean_over_timesteps_of_the_owners() -> None:
    table = IntervalTable([7, 40, 41], 100)
    generator = np.random.default_rng(2)
    curves = [
        LossCurve((0, *sorted(generator.choice(np.arange(1, 100), 5, replace=False).tolist()), 100), tuple(losses))
        for losses in generator.random((4, 6)).tolist()
    ]

    def loss_at(curve: LossCurve, t: int) -> float:
        return curve.losses[next(index for index, hi in enumerate(curve.edges[1:]) if t < hi)]

    found = [loss_at(curves[table.expert_of(t)], t) for t in range(100)]
    assert ensemble_loss(curves, table) == pytest.approx(np.mean(found), rel=1e-12)
    everything = [loss_at(curves[0], t) for t in range(100)]
    assert ensemble_loss([curves[0]] * 4, table) == pytest.approx(np.mean(everything), rel=1e-12)
    assert curves[1].mean(Interval(13, 58)) == pytest.approx(np.mean([loss_at(curves[1], t) for t in range(13, 58)]))
    with pytest.raises(ValueError, match=r"\[90, 101\) is not a part of \[0, 100\)"):
        curves[0].mean(Interval(90, 101))
    with pytest.raises(ValueError, match="do not rise"):
        LossCurve((0, 5, 5), (1.0, 1.0))


def test_planning_reads_curves_without_torch() -> None:
    script = "import sys, workloads.analysis.curves, workloads.config.evaluation as e; e.HeldOutSpec()"
    script += "; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})

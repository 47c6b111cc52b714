"""Samples drawn by many workers are those of a plain loop, however many workers there are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.execution.tasks import generate_samples
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.jobs import Plan
from workloads.config import Resources, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import DamagedFileError
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.samples import SampleStore
from workloads.training.job import train_job

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def ensemble(
    config: RunConfig, planned: Plan, dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> Ensemble:
    root = tmp_path_factory.mktemp("ensemble")
    for job in planned.jobs:
        training = job.job.training.model_copy(update={"images": 32})
        train_job(job.job.model_copy(update={"training": training}), dataset.path, root / job.key, num_threads=1)
    return write_ensemble(root / "ensemble", config, dataset, [root / job.key for job in planned.jobs])


@pytest.mark.parametrize("num_cpus", [2, 1, 0.5], ids=["one worker", "two workers", "four workers"])
def test_images_do_not_depend_on_the_number_of_workers(ensemble: Ensemble, tmp_path: Path, num_cpus: float) -> None:
    protocol = ensemble.config.evaluation
    store = SampleStore(tmp_path)
    reported: list[tuple[int, int]] = []
    generate_samples(
        ensemble,
        protocol,
        store,
        resources=Resources(num_cpus=num_cpus),
        on_progress=lambda done, total: reported.append((done, total)),
    )
    torch.set_num_threads(1)
    for index, indices in enumerate(batch_indices(protocol)):
        expected, _ = generate_batch(ensemble, protocol, indices)
        assert np.array_equal(store.read(index), expected.numpy())
    assert reported[-1] == (protocol.num_samples, protocol.num_samples)


def test_only_missing_batches_are_drawn_again(ensemble: Ensemble, tmp_path: Path) -> None:
    protocol = ensemble.config.evaluation
    store = SampleStore(tmp_path)
    generate_samples(ensemble, protocol, store, resources=Resources())
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    content = store.file(2).read_bytes()
    store.file(2).write_bytes(content[:-100])  # cut short
    generate_samples(ensemble, protocol, store, resources=Resources())
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {store.file(2).name}
    assert store.file(2).read_bytes() == content


def test_damaged_weights_are_one_sentence(ensemble: Ensemble, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "ensemble"
    shutil.copytree(ensemble.path, copy)
    damaged = copy / "expert_01" / "diffusion_pytorch_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises((DamagedFileError, ClusterError)) as raised:
        generate_samples(
            Ensemble.load(copy), ensemble.config.evaluation, SampleStore(tmp_path / "s"), resources=Resources()
        )
    assert "is damaged" in str(raised.value)
    assert "\n" not in str(raised.value)

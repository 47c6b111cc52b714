"""Samples drawn by many workers are those of a plain loop, however many workers there are."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from orchestrator.execution.tasks import generate_samples
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.jobs import Plan
from orchestrator.plan.places import RunsDir
from orchestrator.runs.work import Work
from orchestrator.store.experts import ExpertStore
from workloads.config import ProtocolConfig, Resources, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import DamagedFileError
from workloads.evaluation.generate import batch_indices, generate_batch
from workloads.evaluation.samples import SampleStore
from workloads.pipeline import draw_here
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
        wait_timeout_s=60,
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
    generate_samples(ensemble, protocol, store, resources=Resources(), wait_timeout_s=60)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    content = store.file(2).read_bytes()
    store.file(2).write_bytes(content[:-100])  # cut short
    generate_samples(ensemble, protocol, store, resources=Resources(), wait_timeout_s=60)
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {store.file(2).name}
    assert store.file(2).read_bytes() == content


@pytest.mark.parametrize(
    ("limit_macs", "is_private", "is_here"), [(1e10, True, True), (1, True, False), (1e10, False, False)]
)
def test_a_few_samples_of_a_private_cluster_need_no_workers(
    ensemble: Ensemble,
    planned: Plan,
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit_macs: float,
    is_private: bool,
    is_here: bool,
) -> None:
    drawn_on_cluster: list[str] = []

    def on_cluster(ensemble: Ensemble, protocol: ProtocolConfig, samples: SampleStore, **_: Any) -> None:
        drawn_on_cluster.append(protocol.name)
        draw_here(ensemble, protocol, samples)

    monkeypatch.setattr("orchestrator.runs.work.generate_samples", on_cluster)
    monkeypatch.setattr("orchestrator.runs.work.FEW_SAMPLES_MACS", limit_macs)
    runs = RunsDir(tmp_path)
    work = Work(planned, runs, ExpertStore(runs.store), runs.run("tiny", "0"))
    scored = work.score(ensemble, ensemble.config.evaluation, dataset, is_private=is_private)
    assert drawn_on_cluster == ([] if is_here else ["tiny"])
    assert scored.score.num_samples == 40


def test_damaged_weights_are_one_sentence(ensemble: Ensemble, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "ensemble"
    shutil.copytree(ensemble.path, copy)
    damaged = copy / "expert_01" / "diffusion_pytorch_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises((DamagedFileError, ClusterError)) as raised:
        generate_samples(
            Ensemble.load(copy),
            ensemble.config.evaluation,
            SampleStore(tmp_path / "s"),
            resources=Resources(),
            wait_timeout_s=60,
        )
    assert "is damaged" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tasks_that_no_node_could_hold_are_given_up(
    ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.execution.tasks.LOOK_INTERVAL_S", 0.2)
    wanting = Resources(custom={"highmem": 1})
    with pytest.raises(ClusterError, match=r"but no node has more than 0, for 0\.5 s \(execution") as raised:
        generate_samples(
            ensemble, ensemble.config.evaluation, SampleStore(tmp_path), resources=wanting, wait_timeout_s=0.5
        )
    assert "\n" not in str(raised.value)
    assert caplog.messages == ["5 tasks wait: execution.resources.custom.highmem is 1, but no node has more than 0"]


def test_a_cluster_that_dies_is_an_error_not_a_wait(ensemble: Ensemble, tmp_path: Path) -> None:  # the last one
    """The raylet of a private cluster is killed as soon as something is drawn."""
    (raylet,) = ray._private.worker.global_worker.node.all_processes["raylet"]

    def kill(done: int, total: int) -> None:
        raylet.process.kill()

    # So many batches that some are left when it dies.
    protocol = ensemble.config.evaluation.model_copy(update={"num_samples": 2000})
    started_s = time.monotonic()
    with pytest.raises(ClusterError, match="run the same command again to continue"):
        generate_samples(
            ensemble,
            protocol,
            SampleStore(tmp_path),
            resources=Resources(),
            wait_timeout_s=600,
            on_progress=kill,
        )
    assert time.monotonic() - started_s < 60

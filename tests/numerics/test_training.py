"""Training one real, tiny expert: a resumed run is the same run, bit for bit."""

import math
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from damaging import damage
from filelock import FileLock
from networks import TINY_UNET

from orchestrator.plan.errors import ExpertFailedError
from workloads.checkpoint import CheckpointFolder
from workloads.config import DataSpec, ExpertJob, RunConfig
from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import Batch, BatchStream
from workloads.ensemble import Ensemble, write_ensemble
from workloads.errors import CheckpointError, ConfigError, DamagedFileError, DataError, TakenOverError
from workloads.models.build import WEIGHTS
from workloads.pipeline import gather
from workloads.places import JobDir, RunDir
from workloads.seeding import derive_seed
from workloads.training.expert import DenoisingStep, ExpertTrainer
from workloads.training.hooks import TrainingDivergedError
from workloads.training.job import train_job
from workloads.training.processes import Workers
from workloads.training.records import read_records
from workloads.training.result import TrainingStopped, completed
from workloads.training.state import TrainState, initial_model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8), tmp_path_factory.mktemp("data"))


def run_config(**training: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
            "model": TINY_UNET,
            "strategy": {"kind": "independent", "num_experts": 2, "specialisation": 0.8},
            "training": {
                "images": 96,
                "batch_size": 16,
                "checkpoint_every_images": 32,
                "log_every_images": 32,
                **training,
            },
            "evaluation": "demo",
        }
    )


def job_for(dataset: PreparedDataset, index: int = 0, **training: object) -> ExpertJob:
    config = run_config(**training)
    return config.jobs(dataset.spec(config.data))[index]


@pytest.fixture(scope="module")
def unbroken(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the job was trained without a break."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_job(job_for(dataset), dataset.path, folder)
    return folder


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(work_dir / "expert" / WEIGHTS)


def stop_after(num_steps: int):  # type: ignore[no-untyped-def]  # noqa: ANN201
    calls = iter(range(1_000))
    return lambda: next(calls) >= num_steps - 1


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_a_run_stopped_anywhere_and_resumed_is_the_unbroken_run(
    dataset: PreparedDataset, unbroken: Path, tmp_path: Path
) -> None:
    job = job_for(dataset)
    for num_steps in (1, 3):  # not only at regular checkpoints
        broken = tmp_path / f"broken{num_steps}"
        with pytest.raises(TrainingStopped, match=f"image {16 * num_steps}"):
            train_job(job, dataset.path, broken, should_stop=stop_after(num_steps))
        result = train_job(job, dataset.path, broken)
        assert result.images_seen == 96
        assert_same(weights(unbroken), weights(broken))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak can only be reset on Linux")
def test_what_a_process_needed_earlier_is_not_the_jobs_peak(dataset: PreparedDataset, tmp_path: Path) -> None:
    earlier = torch.ones(2**27)
    del earlier
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = train_job(job_for(dataset), dataset.path, tmp_path / "expert")
    assert 0 < result.peak_memory_bytes < peak_bytes - 2**28


def test_one_process_writes_at_a_time(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a driver was killed whose worker is still at it: wait for it, and take what it has finished."""
    job, folder = job_for(dataset), tmp_path / "expert"
    folder.mkdir()
    lock = FileLock(folder / ".lock")
    with lock:
        monkeypatch.setattr("workloads.training.job.LINGERING_TIMEOUT_S", 0.1)
        with pytest.raises(CheckpointError, match="another process trains in"):
            train_job(job, dataset.path, folder)
        assert not (folder / "result.json").exists()
        monkeypatch.undo()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(train_job, job, dataset.path, folder)
            time.sleep(0.5)
            assert not waiting.done()
            elsewhere = train_job(job, dataset.path, tmp_path / "elsewhere")
            shutil.copytree(tmp_path / "elsewhere", folder, dirs_exist_ok=True)
            lock.release()
            assert waiting.result(timeout=30) == elsewhere


def test_a_damaged_checkpoint_costs_time_but_not_the_result(
    dataset: PreparedDataset, unbroken: Path, tmp_path: Path
) -> None:
    job = job_for(dataset)
    broken = tmp_path / "broken"
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, broken, should_stop=stop_after(5))
    newest = max((broken / "checkpoints").iterdir()) / "state.safetensors"
    damage(newest)
    train_job(job, dataset.path, broken)
    assert_same(weights(unbroken), weights(broken))


def test_what_a_killed_process_was_writing_is_removed(dataset: PreparedDataset, tmp_path: Path) -> None:
    job, folder = job_for(dataset), tmp_path / "expert"
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, folder, should_stop=stop_after(3))
    newest = max((folder / "checkpoints").iterdir())
    shutil.copytree(newest, newest.with_name(".000000000064.1.partial"), ignore=lambda *_: ["manifest.json"])
    (folder / ".expert.1.partial").mkdir()
    train_job(job, dataset.path, folder)
    shutil.copytree(folder / "expert", folder / "checkpoints" / "000000000064")  # killed before it removed them
    train_job(job, dataset.path, folder)
    left = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert left == {".lock", "expert", "job.json", "records.jsonl", "result.json"}


def test_a_finished_job_is_not_trained_again_and_damage_is_noticed(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_for(dataset)
    first = train_job(job, dataset.path, tmp_path)
    assert train_job(job, Path("/nowhere"), tmp_path) == first  # the data is not even opened
    file = tmp_path / "expert" / WEIGHTS
    damage(file)
    with pytest.raises(DamagedFileError, match="damaged"):
        completed(tmp_path)


def test_the_key_holds_what_it_promises(dataset: PreparedDataset, unbroken: Path, tmp_path: Path) -> None:
    """Log and checkpoint intervals are not in the key, so they must not change the weights."""
    usual, other = job_for(dataset), job_for(dataset, checkpoint_every_images=16, log_every_images=1000)
    assert usual.key == other.key
    train_job(other, dataset.path, tmp_path)
    assert_same(weights(unbroken), weights(tmp_path))


def test_seed_and_interval_change_the_weights(dataset: PreparedDataset, unbroken: Path, tmp_path: Path) -> None:
    other_seed = job_for(dataset).model_copy(update={"seed": 1})
    for index, other in enumerate((other_seed, job_for(dataset, index=1))):
        train_job(other, dataset.path, tmp_path / str(index))
        assert not torch.equal(weights(unbroken)["conv_in.weight"], weights(tmp_path / str(index))["conv_in.weight"])


def test_one_step_equals_the_same_step_written_out(dataset: PreparedDataset) -> None:
    """Loss, gradient, clipping and AdamW's first step, in plain operations on the same draws."""
    job = job_for(dataset, learning_rate=0.01, warmup_images=0, clip_grad_norm=0.5, weight_decay=0.1)
    state = fresh_state(job)
    reference = {name: value.detach().clone().double() for name, value in state.model.named_parameters()}
    step = DenoisingStep(job, torch.device("cpu"), Workers())
    batch = Batch(torch.rand(16, 1, 8, 8) * 2 - 1, torch.arange(16) % 10)
    t_B, noise, labels = step._draw(0, batch.images_BCHW, batch.labels_B)
    model = fresh_state(job).model.double()
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)[t_B].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * batch.images_BCHW.double() + (1 - abar).sqrt() * noise.double()
    loss = ((model(x_t, t_B, class_labels=labels).sample - noise.double()) ** 2).mean()
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    measured = step(state, batch)
    assert measured.item() == pytest.approx(loss.item(), rel=1e-5)
    assert state.images_seen == 16
    moved = dict(state.model.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = parameter.grad * min(1.0, 0.5 / norm.item())
        # AdamW, first step: both moments are bias-corrected to the gradient itself.
        expected = reference[name] * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        large = gradient.abs() > 1e-5  # below that, float32's sign of the gradient is rounding noise
        torch.testing.assert_close(moved[name].double()[large], expected[large], rtol=1e-3, atol=2e-4)


def fresh_state(job: ExpertJob) -> TrainState:
    state = TrainState(initial_model(job, torch.device("cpu")), job.training, job.diffusion.num_timesteps)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # the network starts with zero output: move it so that every gradient is there
        for parameter in state.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return state


def test_labels_are_hidden_as_often_as_the_config_says(dataset: PreparedDataset) -> None:
    job = job_for(dataset, label_dropout=0.25)
    step = DenoisingStep(job, torch.device("cpu"), Workers())
    images, labels = torch.zeros(4000, 1, 8, 8), torch.zeros(4000, dtype=torch.int64)
    _, _, seen = step._draw(0, images, labels)
    assert seen is not None
    assert set(seen.tolist()) == {0, 10}
    assert (seen == 10).float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)


def test_divergence_is_reported_not_trained_through(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_for(dataset, learning_rate=1e30, clip_grad_norm=None, log_every_images=16)
    with pytest.raises(TrainingDivergedError, match=r"lower training\.learning_rate") as raised:
        train_job(job, dataset.path, tmp_path)
    assert completed(tmp_path) is None
    told = str(raised.value)
    found = re.search(r"step from image (\d+) to (\d+), with data indices ([\d, ]+), .* timesteps ([\d, ]+), ", told)
    assert found is not None, told
    # Trained by hand up to there, the step it names is the first whose loss is no number, on what it names.
    state, step = ExpertTrainer(job).begin(torch.device("cpu"), Workers())
    stream = BatchStream(dataset, batch_size=16, seed=derive_seed("order", job.seed, *job.interval))
    losses = {}
    while state.images_seen <= int(found[1]):
        start = state.images_seen
        losses[start] = step(state, stream.at(start)).item()
    assert [start for start, loss in losses.items() if not math.isfinite(loss)] == [int(found[1])]
    named = np.array([int(word) for word in found[3].split(",")])
    images = torch.from_numpy(dataset.images(named)).float() / 127.5 - 1
    torch.testing.assert_close(stream.at(int(found[1])).images_BCHW[:8], images)
    t_B, _, _ = step._draw(int(found[1]), torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64))
    assert t_B[:8].tolist() == [int(word) for word in found[4].split(",")]
    assert "the same would happen again" in told
    assert "run the same command again" not in str(ExpertFailedError("expert_00", 1, told))


def test_other_data_than_planned_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_for(dataset)
    other = job.model_copy(update={"data": DataSpec(fingerprint="0" * 64, channels=1, image_size=8)})
    with pytest.raises(DataError, match="planned for 0000"):
        train_job(other, dataset.path, tmp_path)


def test_who_was_taken_over_changes_nothing_more(dataset: PreparedDataset, unbroken: Path, tmp_path: Path) -> None:
    """A shared file system frees the lock of a host it does not hear of; here the lock's file goes."""
    job, found = job_for(dataset), {}

    def cut_off(at_step: int) -> Callable[[], bool]:
        steps = iter(range(1000))

        def asked() -> bool:
            if next(steps) == at_step:
                JobDir(tmp_path).lock.unlink()
                train_job(job, dataset.path, tmp_path)
                found.update(content_of(tmp_path))
            return False

        return asked

    for at_step in (2, 4):  # a record and a checkpoint come next, or the end
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        with pytest.raises(TakenOverError, match="another process has taken over"):
            train_job(job, dataset.path, tmp_path, should_stop=cut_off(at_step))
        assert content_of(tmp_path) == found
        assert_same(weights(tmp_path), weights(unbroken))


def content_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_records_after_a_resume_hold_each_image_once(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_for(dataset)
    with pytest.raises(TrainingStopped):
        train_job(job, dataset.path, tmp_path, should_stop=stop_after(4))
    train_job(job, dataset.path, tmp_path)
    seen = [record.images_seen for record in read_records(tmp_path / "records.jsonl")]
    assert seen == sorted(set(seen))
    assert seen[-1] == 96


def test_a_checkpoint_of_another_network_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    job = job_for(dataset)
    wider = job.model_copy(update={"model": job.model.model_copy(update={"channels": 16})})
    folder = CheckpointFolder(tmp_path, "any")
    folder.save(fresh_state(wider).checkpoint())
    loaded = folder.load_latest()
    assert loaded is not None
    with pytest.raises(CheckpointError, match="another network"):
        fresh_state(job).restore(loaded)


def test_the_ensemble_looks_up_the_expert_that_owns_the_timestep(
    dataset: PreparedDataset, unbroken: Path, tmp_path: Path
) -> None:
    config = run_config()
    jobs = config.jobs(dataset.spec(config.data))
    folders = [tmp_path / job.key for job in jobs]
    shutil.copytree(unbroken, folders[0])
    train_job(jobs[1], dataset.path, folders[1])
    written = write_ensemble(tmp_path / "run" / "ensemble", config, dataset, folders)
    ensemble = Ensemble.load(tmp_path / "run")
    assert ensemble.fingerprint == written.fingerprint
    x, labels = torch.randn(3, *ensemble.shape_CHW), torch.tensor([1, 2, 10])
    with torch.no_grad():
        for timestep, index in ((0, 0), (499, 0), (500, 1), (999, 1)):
            direct = ensemble.expert(index)(x, torch.full((3,), timestep), class_labels=labels).sample
            assert torch.equal(ensemble.denoise(x, timestep, labels), direct)
    damaged = tmp_path / "run" / "ensemble" / "expert_01" / WEIGHTS
    damage(damaged)
    with pytest.raises(DamagedFileError, match="expert_01"):
        Ensemble.load(tmp_path / "run").expert(1)
    with pytest.raises(ConfigError, match="holds no ensemble"):
        Ensemble.load(tmp_path)


def test_data_that_was_damaged_is_not_trained_on(dataset: PreparedDataset, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(dataset.path, copy)
    shard = min(copy.glob("*.arrow"))
    PreparedDataset(copy).verify_once()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name} does not match its checksum"):
        train_job(job_for(dataset), copy, tmp_path / "job")
    assert completed(tmp_path / "job") is None
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        PreparedDataset(copy)


def test_what_is_whole_is_looked_at_once(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.verify_once()
    monkeypatch.setattr(PreparedDataset, "verify", lambda _: pytest.fail("looked at a second time"))
    PreparedDataset(dataset.path).verify_once()


def test_an_ensemble_that_was_changed_is_refused_and_gathered_anew(dataset: PreparedDataset, tmp_path: Path) -> None:
    config = run_config(images=16)
    folders = [tmp_path / str(index) for index in range(2)]
    for job, folder in zip(config.jobs(dataset.spec(config.data)), folders, strict=True):
        train_job(job, dataset.path, folder)
    run = RunDir(tmp_path / "run")
    whole = gather(run, config, dataset, folders)
    index, network = run.ensemble.index, run.ensemble.expert(1) / "config.json"
    written = index.read_text()
    assert gather(run, config, dataset, folders).index == whole.index
    index.write_text(written.replace('"num_timesteps": 1000', '"num_timesteps": 999'))
    with pytest.raises(DamagedFileError, match="was changed since it was written"):
        Ensemble.load(run.path)
    for text in ("", "[]", "{}", "null", written[:100]):
        index.write_text(text)
        with pytest.raises(DamagedFileError, match=r"ensemble\.json is damaged"):
            Ensemble.load(run.path)
    for file in (index, network, run.ensemble.expert(0) / WEIGHTS):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        mended = gather(run, config, dataset, folders)
        assert index.read_text() == written
        mended.verify()
    network.write_text(network.read_text().replace("swish", "gelu") + " ")
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged"):
        Ensemble.load(run.path).expert(1)

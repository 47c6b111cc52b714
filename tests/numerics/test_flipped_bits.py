"""One bit flipped in any file that a run, a remix, a study, samples or data leave: named, and never used.

And the same files on a disk that may only be read.
"""

import json
import logging
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.plan.jobs import make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.runs.damage import examine_directory
from orchestrator.runs.status import StatusFile
from orchestrator.runs.work import Work
from orchestrator.search.study.damage import examine_study
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.trial import Trial
from orchestrator.store.experts import ExpertStore
from workloads.analysis.held_out import held_out_curve
from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.config import ExpertJob, RunConfig
from workloads.config.evaluation import HeldOutSpec
from workloads.config.load import validate
from workloads.data.prepare import prepare
from workloads.ensemble import Ensemble
from workloads.errors import DamagedFileError, DataError, RememeError, StorageError
from workloads.pipeline import gather, reference_data, score_ensemble, training_data
from workloads.places import EnsembleDir, JobDir, RunDir
from workloads.sealed import UNREADABLE, load_json
from workloads.training.job import train_job

NUM_FLIPS = 6
"""Per file, at places drawn by its name."""

REMIX: dict[str, Any] = {"kind": "remix", "num_experts": 2, "num_bases": 2, "mixed": ["*"]}
MEME: dict[str, Any] = {"kind": "independent", "num_experts": 2}

NOT_READ = (
    "*.lock",
    "store/store-id",  # names the directory, whatever stands there
    "data/*/preparation.json",  # these two serve an interrupted preparation, and are looked at then
    "data/*/shard-*.json",
)


def leave_run(runs: RunsDir, config: RunConfig) -> RunDir:
    """What `rememe train` leaves, without the cluster that only says where things run."""
    dataset = training_data(config, runs.data)
    plan = make_plan(config, dataset.spec(config.data))
    work = Work(plan, runs, ExpertStore(runs.store), runs.run(config.name, plan.fingerprint))
    work.write_description()
    with StatusFile(work.run, config.strategy.kind, plan.jobs):
        for job in plan.jobs:
            train_job(job.job, dataset.path, work.store.path(job.key))
            held_out_curve(work.store.path(job.key), job.job, dataset.path, HeldOutSpec(num_images=4, num_bins=2))
        score(work.run, work.gather(dataset), runs)
    return work.run


def score(run: RunDir, ensemble: Ensemble, runs: RunsDir) -> float:
    reference = reference_data(ensemble.config, runs.data)
    scored = score_ensemble(ensemble, ensemble.config.evaluation, reference, run, cache_dir=runs.cache)
    return scored.score.value


@pytest.fixture(scope="module")
def left(
    tiny_run: dict[str, Any], few_images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunsDir, list[RunDir]]:
    """A finished run, a finished remix, an expert that was only begun, and a study."""
    runs = RunsDir(tmp_path_factory.mktemp("left"))
    changes: dict[str, Any] = {
        "data": few_images | {"held_out": 20},
        "training": {"images": 64, "batch_size": 16, "log_every_images": 16, "checkpoint_every_images": 32},
    }
    found = [
        leave_run(runs, RunConfig.model_validate(tiny_run | changes | {"name": name, "strategy": strategy}))
        for name, strategy in (("meme", MEME), ("remix", REMIX))
    ]
    begun = CheckpointFolder(runs.job("begun").checkpoints, "begun")
    for images_seen in (16, 32):
        begun.save(Checkpoint(images_seen, {"w": torch.full((8,), float(images_seen))}))
    ledger = Ledger(runs, "study")
    ledger.begin({"name": "study", "space": {"training.learning_rate": [0.1, 0.2]}})
    ledger.write(Trial(number=0, values={"training.learning_rate": 0.1}, state="finished", elapsed_s=1.5))
    return runs, found


@pytest.fixture
def copied(left: tuple[RunsDir, list[RunDir]], tmp_path: Path) -> tuple[RunsDir, list[RunDir]]:
    shutil.copytree(left[0].path, tmp_path, dirs_exist_ok=True)
    runs = RunsDir(tmp_path)
    return runs, [runs.run_named(run.path.name) for run in left[1]]


def flip(file: Path, place: int | None = None) -> None:
    """One bit, in the middle unless another place is asked for."""
    content = bytearray(file.read_bytes())
    place = 4 * len(content) if place is None else place
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def flips(file: Path, num_flips: int = NUM_FLIPS) -> Iterator[None]:
    """The file with another bit flipped each time, and in the end as it was."""
    whole = file.read_bytes()
    for place in random.Random(file.name).sample(range(8 * len(whole)), num_flips):
        flip(file, place)
        if file.suffix != ".json" or not is_equal(file, whole):
            yield
        file.write_bytes(whole)


def is_equal(file: Path, whole: bytes) -> bool:
    """Whether a flip has changed no more than 1e5 to 1E5."""
    try:
        return load_json(file) == {key: value for key, value in json.loads(whole).items() if key != "checksum"}
    except UNREADABLE:
        return False


def problems(runs: RunsDir, file: Path) -> str:
    """What `rememe doctor DIRECTORY` says about the directory that a file belongs to."""
    top = file.relative_to(runs.path).parts
    if top[0] == "studies":
        findings = examine_study(runs.path / top[0] / top[1])
    else:
        depth = 2 if top[0] in {"store", "data"} else 1
        findings = examine_directory(runs.path.joinpath(*top[:depth]))
    return "\n".join(finding.text for finding in findings if not finding.is_ok)


def test_every_file_is_named_or_not_read(copied: tuple[RunsDir, list[RunDir]]) -> None:
    runs, found = copied
    files = [file for file in sorted(runs.path.rglob("*")) if file.is_file() and file.stat().st_size]
    cached = set(runs.cache.rglob("*.safetensors"))
    checked = [file for file in files if not any(file.match(pattern) for pattern in NOT_READ) and file not in cached]
    kinds = {file.name for file in checked}
    assert {"job.json", "result.json", "records.jsonl", "coefficients.jsonl", "plan.json", "config.yaml"} <= kinds
    assert {"ensemble.json", "scores.json", "status.json", "study.json", "0000.json", "batch_00000.npy"} <= kinds
    assert {"config.json", "state.safetensors", "manifest.json", "grid.png", "shard-00000.arrow"} <= kinds
    for file in checked:
        assert problems(runs, file) == ""
        for _ in flips(file):
            # A checkpoint is one thing: its folder is named.
            assert any(str(name) in problems(runs, file) for name in (file, file.parent)), file
    assert problems(runs, found[0].plan) == problems(runs, found[1].plan) == ""


def test_a_cache_is_computed_again(copied: tuple[RunsDir, list[RunDir]], caplog: pytest.LogCaptureFixture) -> None:
    runs, (run, _) = copied
    expected = score(run, Ensemble.load(run.path), runs)
    (file,) = (runs.cache / "statistics").glob("*.safetensors")
    for _ in flips(file, 2):
        caplog.clear()
        assert score(run, Ensemble.load(run.path), runs) == expected
        assert f"{file} is damaged and is computed again" in caplog.text


def test_samples_are_drawn_again(copied: tuple[RunsDir, list[RunDir]], caplog: pytest.LogCaptureFixture) -> None:
    runs, (run, _) = copied
    expected = score(run, Ensemble.load(run.path), runs)
    file = next(run.samples("").rglob("batch_00002.npy"))
    whole = file.read_bytes()
    flip(file)
    assert score(run, Ensemble.load(run.path), runs) == expected
    assert f"{file} is damaged; these samples are drawn again" in caplog.text
    assert file.read_bytes() == whole


def test_a_damaged_file_of_scores_loses_no_new_score(
    copied: tuple[RunsDir, list[RunDir]], caplog: pytest.LogCaptureFixture
) -> None:
    runs, (run, _) = copied
    whole = json.loads(run.scores.read_text())
    flip(run.scores)
    score(run, Ensemble.load(run.path), runs)
    assert f"{run.scores} is damaged" in caplog.text
    assert json.loads(run.scores.read_text()) == whole


def test_the_store_takes_nothing_damaged(
    copied: tuple[RunsDir, list[RunDir]], caplog: pytest.LogCaptureFixture
) -> None:
    runs, _ = copied
    store = ExpertStore(runs.store)
    key = next(runs.store.glob("*/expert")).parent.name
    for name in ("result.json", "job.json", "expert/config.json", "expert/*.safetensors"):
        file = next(store.path(key).glob(name))
        job = shutil.copytree(store.path(key), runs.path / "kept" / name)
        flip(file)
        assert store.completed(key) is None
        assert f"{file} is damaged" in caplog.text
        assert not JobDir(store.path(key)).result.exists()
        shutil.copytree(job, store.path(key))
        assert store.completed(key) is not None


def of_run(name: str) -> Callable[[RunDir, RunDir, RunsDir], Path]:
    return lambda run, remix, runs: next(run.path.glob(name))


def of_remix(name: str) -> Callable[[RunDir, RunDir, RunsDir], Path]:
    return lambda run, remix, runs: next(remix.path.glob(name))


def of_runs(name: str) -> Callable[[RunDir, RunDir, RunsDir], Path]:
    return lambda run, remix, runs: next(runs.path.glob(name))


@pytest.mark.parametrize(
    ("command", "damaged"),
    [
        ("sample {run} --num 2 --grid {out}", of_run("ensemble/ensemble.json")),
        ("sample {run} --num 2 --grid {out}", of_run("ensemble/expert_00/config.json")),
        ("sample {run} --num 2 --grid {out}", of_run("ensemble/expert_00/*.safetensors")),
        ("sample {remix} --num 2 --grid {out}", of_remix("ensemble/remix/*.safetensors")),
        ("bake {remix} {out}", of_remix("ensemble/remix/config.json")),
        ("export {run} {out}", of_run("ensemble/expert_01/*.safetensors")),
        (
            "analyze spectra {run} --num-images 2 --out {out} --runs-dir {runs}",
            of_run("ensemble/expert_01/config.json"),
        ),
        ("data show {data} --out {out}", of_runs("data/*/shard-00000.arrow")),
        ("data show {data} --out {out}", of_runs("data/*/manifest.json")),
        ("plan demo-meme initial_weights={run}/ensemble/expert_00", of_run("ensemble/expert_00/*.safetensors")),
        ("plan demo-meme initial_weights={expert}", of_runs("store/*/expert/*.safetensors")),
        ("report study --runs-dir {runs}", of_runs("studies/study/study.json")),
        ("status {run} --runs-dir {runs}", of_run("status.json")),
        ("store gc --runs-dir {runs}", of_run("plan.json")),
        ("store gc --runs-dir {runs}", of_runs("studies/study/trials/0000.json")),
    ],
)
def test_commands_refuse_in_one_sentence(
    command: str,
    damaged: Callable[[RunDir, RunDir, RunsDir], Path],
    copied: tuple[RunsDir, list[RunDir]],
    tmp_path: Path,
) -> None:
    runs, (run, remix) = copied
    file = damaged(run, remix, runs)
    flip(file)
    (data,) = [folder for folder in runs.data.iterdir() if folder.is_dir()]
    places = {"run": run.path, "remix": remix.path, "runs": runs.path, "data": data, "out": tmp_path / "out.png"}
    result = CliRunner().invoke(app, command.format(**places, expert=file.parent).split())
    assert isinstance(result.exception, RememeError), result.output
    assert result.exception.exit_code == 2
    assert str(file) in str(result.exception)
    assert "; " in str(result.exception)
    assert not (tmp_path / "out.png").exists()


def test_a_damaged_configuration_of_a_study_is_named_and_left_out(
    copied: tuple[RunsDir, list[RunDir]], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(copied[0], "study")
    file = ledger.dir.trial_file(0)
    flip(file)
    with caplog.at_level(logging.WARNING):
        assert ledger.trials() == []
    assert f"{file} is damaged" in caplog.text


def told(command: str, runs: RunsDir, run: RunDir, out: Path) -> tuple[int, str]:
    """Exit code and words of a command line."""
    result = CliRunner().invoke(app, command.format(runs=runs.path, run=run.path, out=out).split())
    if isinstance(result.exception, RememeError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_first_stage_of_latents_is_the_one_they_were_made_with(
    tiny_run: dict[str, Any], few_images: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
        scaling_factor=1.0,
    )
    vae.save_pretrained(tmp_path / "vae")
    images = validate(RunConfig, tiny_run | {"data": few_images}).data
    with pytest.raises(DataError, match="would be right") as raised:
        prepare(images, tmp_path / "wrong", vae=tmp_path / "vae")
    factor = float(re.findall(r"; (\S+) would be right", str(raised.value))[0])
    vae.register_to_config(scaling_factor=factor)
    vae.save_pretrained(tmp_path / "vae")
    prepare(images, tmp_path / "latents", vae=tmp_path / "vae")
    changes: dict[str, Any] = {
        "data": {"kind": "prepared", "path": str(tmp_path / "latents"), "image_size": 4},
        "reference": few_images,
        "strategy": {"kind": "single"},
        "training": {"images": 16, "batch_size": 16},
    }
    runs, config = RunsDir(tmp_path / "runs"), RunConfig.model_validate(tiny_run | changes)
    dataset = training_data(config, runs.data)
    (job,) = config.jobs(dataset.spec(config.data))
    work_dir, run = runs.job(job.key).path, RunDir(runs.path / "run")
    train_job(job, dataset.path, work_dir)
    ensemble = gather(run, config, dataset, [work_dir])
    ensemble.decode(torch.zeros(1, *ensemble.shape_CHW))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        file = EnsembleDir(run.ensemble.path).vae / name
        flip(file)
        with pytest.raises(DamagedFileError, match=f"{file} is damaged"):
            Ensemble.load(run.path).decode(torch.zeros(1, *ensemble.shape_CHW))
        assert gather(run, config, dataset, [work_dir]).index == ensemble.index  # made anew
    flip(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(run.ensemble.path)
    with pytest.raises(DamagedFileError, match="put back what the latents were made with"):
        gather(run, config, dataset, [work_dir])


def test_doctor_looks_at_directories(copied: tuple[RunsDir, list[RunDir]], tmp_path: Path) -> None:
    runs, (run, _) = copied
    expert = next(runs.store.glob("*/expert")).parent
    for folder in (run.path, run.ensemble.path, runs.studies / "study", expert, next(runs.data.glob("*/"))):
        code, words = told(f"doctor {folder}", runs, run, tmp_path)
        assert (code, "problem" in words) == (0, False), words
    file = run.ensemble.expert(1) / "config.json"
    flip(file)
    code, words = told("doctor {run}", runs, run, tmp_path)
    assert (code, words.count("problem")) == (1, 1)
    assert f"{file} is damaged" in words
    code, words = told(f"doctor {runs.path}", runs, run, tmp_path)
    assert (code, "is no directory of a run" in words) == (2, True)


def test_a_disk_that_may_only_be_read_is_looked_at(
    left: tuple[RunsDir, list[RunDir]], mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = mounted("64m")
    shutil.copytree(left[0].path, disk, dirs_exist_ok=True)
    runs = RunsDir(disk)
    run = runs.run_named(left[1][0].path.name)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (
        "sample {run} --num 2 --grid {out}/grid.png",
        "export {run} {out}/export",
        "doctor {run}",
        "store ls --runs-dir {runs}",
        "store verify --runs-dir {runs}",
        "store gc --runs-dir {runs}",
        "status {run} --runs-dir {runs}",
        "report study --runs-dir {runs} --out {out}/report.html",
    ):
        code, words = told(command, runs, run, tmp_path)
        assert code == 0, (command, words)
    code, words = told("report study --runs-dir {runs}", runs, run, tmp_path)
    assert (code, "report.html cannot be written (Read-only file system)" in words) == (1, True)
    with pytest.raises(StorageError, match=r"store/new cannot be written .Read-only file system"):
        train_job(*job_of(runs), runs.store / "new")


def job_of(runs: RunsDir) -> tuple[ExpertJob, Path]:
    """Of the finished run, and its data."""
    file = next(runs.store.glob("*/expert")).parent / "job.json"
    return ExpertJob.model_validate(load_json(file)), next(runs.data.glob("*/"))

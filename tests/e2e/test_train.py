"""`rememe train` from the first byte to the score; interrupted, failing, and again."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.live.server import LivePage
from orchestrator.plan.places import RunsDir
from orchestrator.tracking.writer import IMAGES_FOLDER, image_place
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.ensemble import Ensemble
from workloads.training.job import train_job

pytestmark = pytest.mark.e2e

Rememe = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


def runs_of(folder: Path) -> list[Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rememe")
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def children(folder: Path, parent: Run) -> list[Run]:
    experts = [run for run in runs_of(folder) if "rememe.key" in run.data.tags]
    found = [run for run in experts if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(found, key=lambda run: run.info.run_name)


def parent_of(folder: Path) -> Run:
    (parent,) = [run for run in runs_of(folder) if "mlflow.parentRunId" not in run.data.tags]
    return parent


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the finished experts' weights, by content key."""
    results = (folder / "runs" / "store").glob("*/result.json")
    return {file.parent.name: json.loads(file.read_text())["weights_sha256"] for file in results}


def read_until(lines: Iterable[str], pattern: str) -> "re.Match[str]":
    seen = []
    for line in lines:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} is not in:\n{''.join(seen)}")


@pytest.fixture(scope="module")
def trained(tiny_run: dict[str, Any], rememe: Rememe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `rememe train tiny.yaml` has run; its output is in train.txt."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_run))
    result = rememe("train", "tiny.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "train.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def run_dir(trained: Path) -> Path:
    """The run directory of `trained`."""
    (found,) = (trained / "runs").glob("tiny-*")
    return found


def test_training_ends_with_the_score_and_where_to_look(trained: Path, run_dir: Path) -> None:
    printed = (trained / "train.txt").read_text()
    (score,) = json.loads((run_dir / "scores.json").read_text()).values()
    assert f"fd-fashion-cnn = {score['value']:.3f}" in printed
    assert score["doubts"] == ["40 samples are too few for 128 features, whose covariance needs at least 129"]
    assert f"not trustworthy: {score['doubts'][0]}" in " ".join(printed.split())
    assert re.search(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", printed)
    assert f"samples      {run_dir.relative_to(trained) / 'grid.png'}" in printed
    assert (run_dir / "grid.png").is_file()
    for number in range(4):
        assert f"expert_{number:02d}" in printed


def test_mlflow_holds_the_configuration_and_its_experts(trained: Path, run_dir: Path, tiny_run: dict[str, Any]) -> None:
    parent = parent_of(trained)
    (score,) = json.loads((run_dir / "scores.json").read_text()).values()
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["fd-fashion-cnn"] == score["value"]
    assert parent.data.tags["rememe.protocol_hash"] == score["protocol_hash"]
    assert parent.data.tags["rememe.trustworthy"] == f"not trustworthy: {score['doubts'][0]}"
    assert parent.data.params["training.batch_size"] == "16"
    assert parent.data.params["strategy.experts.3.specialisation"] == "0.1"
    client = MlflowClient(tracking_uri=f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "grid.png", "figures"} <= artifacts
    experts = children(trained, parent)
    assert len(experts) == 4
    for expert in experts:
        assert expert.info.status == "FINISHED"
        losses = client.get_metric_history(expert.info.run_id, "loss")
        budget, every = tiny_run["training"]["images"], tiny_run["training"]["log_every_images"]
        assert [metric.step for metric in losses] == list(range(every, budget + 1, every))
        assert {"images_per_s", "loader_wait_share", "learning_rate", "final_loss"} <= expert.data.metrics.keys()
        curve = client.get_metric_history(expert.info.run_id, "loss_by_timestep")
        assert len({metric.step for metric in curve}) == len(curve) > 4


def test_mlflow_shows_what_every_expert_draws_by_images_seen(trained: Path) -> None:
    """Side by side in a run of their own, and on the expert's page."""
    client = MlflowClient(tracking_uri=f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    parent = parent_of(trained)
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND attributes.run_name = 'pictures'"
    (album,) = client.search_runs([parent.info.experiment_id], below)
    assert album.info.status == "FINISHED"
    assert album.data.params == {}
    series = {f"denoised/expert_0{number}" for number in range(4)}
    # Ten images denoised take what 3.3 images of training do: twice is 0.7 % of 1,024, and three times 1 %.
    assert places_of(client, album) == {(name, step) for name in series for step in (0, 1024)}
    for expert in children(trained, parent):
        assert places_of(client, expert) == {("denoised", step) for step in (0, 1024)}


def places_of(client: MlflowClient, run: Run) -> set[tuple[str, int]]:
    found = [image_place(item.path) for item in client.list_artifacts(run.info.run_id, IMAGES_FOLDER)]
    whole = [place for place in found if place is not None]
    assert len(set(whole)) == len(whole)
    return set(whole)


def test_mlflow_has_the_ensemble_as_a_model(trained: Path, run_dir: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    parent = parent_of(trained)
    (model,) = client.search_logged_models([parent.info.experiment_id])
    assert [output.model_id for output in parent.outputs.model_outputs] == [model.model_id]
    assert model.tags["rememe.ensemble"] == Ensemble.load(run_dir).fingerprint


def test_again_changes_nothing_and_trains_nothing(trained: Path, rememe_here: Rememe, one_slot: None) -> None:
    before, parent = weights_of(trained), parent_of(trained)
    expert = children(trained, parent)[0]
    client = MlflowClient(tracking_uri=f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    num_losses = len(client.get_metric_history(expert.info.run_id, "loss"))
    result = rememe_here("train", "tiny.yaml", "--json", cwd=trained)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(": reused") == 4
    told = json.loads(result.stdout)
    assert told.keys() == {"run", "fingerprint", "jobs", "score"}
    assert {job["key"]: job["weights_sha256"] for job in told["jobs"]} == before
    assert told["score"]["value"] == parent.data.metrics["fd-fashion-cnn"]
    assert weights_of(trained) == before
    assert parent_of(trained).info.run_id == parent.info.run_id
    assert len(client.get_metric_history(expert.info.run_id, "loss")) == num_losses


@pytest.fixture
def live(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """live(*texts): wait until the live page, opened once, shows them; nothing where there is no browser."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        yield lambda *_: None
        return
    browser, wait_for_text = request.getfixturevalue("browser"), request.getfixturevalue("wait_for_text")
    with LivePage(RunsDir(tmp_path / "runs"), 0) as page:
        browser.get(page.url)
        browser.execute_script("window.isTheSame = true")

        def wait(*texts: str) -> None:
            wait_for_text(browser, *texts)
            assert browser.execute_script("return window.isTheSame"), "it was loaded again"

        yield wait
        assert browser.get_log("browser") == []


def test_ctrl_c_and_kill_9_leave_the_weights_of_a_plain_loop(
    tiny_run: dict[str, Any], start_rememe: Start, live: Callable[..., None], tmp_path: Path
) -> None:
    experts = [{"specialisation": 0.8, "model": {"attention_share": ["1/4"]}}, {"specialisation": 0.2}]
    training = tiny_run["training"] | {"images": 2560}
    raw = tiny_run | {"strategy": {"kind": "meme", "experts": experts}, "training": training}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    command = ("train", "tiny.yaml", "--no-evaluate")
    live("No run has been started here yet")

    process = start_rememe(*command, cwd=tmp_path)
    assert process.stdout is not None
    read_until(process.stdout, "images, loss")
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait() == 130
    assert "checkpoints are written, run the same command again to continue" in output
    assert "Traceback" not in output
    live("stopped 20")

    process = start_rememe(*command, cwd=tmp_path)
    assert process.stdout is not None
    pid = int(read_until(process.stdout, r"training \(pid (\d+) on")[1])
    os.kill(pid, signal.SIGKILL)
    read_until(process.stdout, "restarting")
    live("stopped, its process died")
    output = process.stdout.read()
    assert process.wait() == 0, output
    live("finished 20", "2 done", "stopped, its process died")
    assert weights_of(tmp_path) == trained_here(RunConfig.model_validate(raw), tmp_path / "here")


def trained_here(config: RunConfig, folder: Path) -> dict[str, str]:
    """weights_of the same experts, trained one after the other in this process."""
    dataset = ensure_prepared(config.data, folder / "data")
    num_threads = torch.get_num_threads()
    try:
        jobs = config.jobs(dataset.spec(config.data))
        return {job.key: train_job(job, dataset.path, folder / job.key, num_threads=1).weights_sha256 for job in jobs}
    finally:
        torch.set_num_threads(num_threads)


def test_one_failed_expert_does_not_stop_the_others(
    tiny_run: dict[str, Any], rememe_here: Rememe, one_slot: None, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_run))
    planned = json.loads(rememe_here("plan", "tiny.yaml", "--json", cwd=tmp_path).stdout)
    key = planned["jobs"][2]["key"]
    (tmp_path / "runs" / "store").mkdir(parents=True)
    (tmp_path / "runs" / "store" / key).write_text("in the way")
    result = rememe_here("train", "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: 1 expert failed, the others are kept. expert_02 failed")
    assert "Traceback" not in result.stderr + result.stdout
    assert weights_of(tmp_path).keys() == {job["key"] for job in planned["jobs"]} - {key}
    parent = parent_of(tmp_path)
    assert parent.info.status == "FAILED"
    assert [run.info.status for run in children(tmp_path, parent)] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]


def test_sampling_scoring_and_spectra_of_a_trained_run(
    trained: Path, run_dir: Path, rememe: Rememe, rememe_here: Rememe, one_slot: None
) -> None:
    first = rememe("sample", run_dir, "--num", 6, "--seed", 3, "--grid", "a.png", "--out", "pngs", cwd=trained)
    assert first.returncode == 0, first.stderr
    assert len(list((trained / "pngs").glob("*.png"))) == 6
    rememe_here("sample", run_dir, "--num", 6, "--seed", 3, "--grid", "b.png", cwd=trained)
    rememe_here("sample", run_dir, "--num", 6, "--seed", 4, "--grid", "c.png", cwd=trained)
    a, b, c = ((trained / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c

    own = parent_of(trained).data.metrics["fd-fashion-cnn"]
    scored = rememe_here("evaluate", run_dir, "--set", "seed=1", "--json", cwd=trained)
    assert scored.returncode == 0, scored.stderr
    metrics = parent_of(trained).data.metrics
    assert metrics["fd-fashion-cnn"] == own
    (other,) = [name for name in metrics if name.startswith("fd-fashion-cnn/tiny-")]
    assert metrics[other] == json.loads(scored.stdout)["value"] != own

    spectra = rememe_here(
        "analyze", "spectra", run_dir, "--num-images", 4, "--everywhere", "--control", run_dir, cwd=trained
    )
    assert spectra.returncode == 0, spectra.stderr
    assert (run_dir / "figures" / "spectra.png").is_file()
    with (run_dir / "figures" / "spectra.csv").open() as file:
        curves = list(csv.DictReader(file))
    timesteps: dict[str, set[str]] = {}
    for row in curves:
        timesteps.setdefault(row["network"], set()).add(row["timestep"])
    assert len(timesteps) > 1
    assert len({frozenset(seen) for seen in timesteps.values()}) == 1
    assert {"x_t", "mid_block"} <= {row["block"] for row in curves}

"""A remix from the command line: trained by two workers, tracked, sampled, baked, exported, compared."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diffusers import DiTTransformer2DModel
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from PIL import Image

from workloads.interop import MultiExpertPipeline, sample_generators

pytestmark = pytest.mark.e2e

Rememe = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def tiny_remix(tiny_run: dict[str, Any]) -> dict[str, Any]:
    return tiny_run | {
        "name": "tiny-remix",
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4, "experts_per_step": 2},
        "execution": {"num_workers": 2},
    }


@pytest.fixture(scope="module")
def folder(
    tiny_remix: dict[str, Any], rememe_here: Rememe, cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory in which the remix has been trained."""
    folder = tmp_path_factory.mktemp("remix")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_remix))
    result = rememe_here("train", "tiny.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "fd-fashion-cnn = " in result.stdout
    return folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    (found,) = (folder / "runs").glob("tiny-remix-*")
    return found


def test_scores_and_pictures_are_in_mlflow(folder: Path, run_dir: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rememe")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    (child,) = [run for run in runs if "rememe.key" in run.data.tags]
    assert parent.data.metrics["fd-fashion-cnn"] > 0
    assert parent.data.params["strategy.num_bases"] == "4"
    figures = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {"coefficients.png", "loss_matrix.png", "loss_by_timestep.png", "training_loss.png"}
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 1024
    assert (run_dir / "figures" / "coefficients.png").is_file()


def test_baked_experts_draw_the_same_images(folder: Path, run_dir: Path, rememe_here: Rememe) -> None:
    result = rememe_here("bake", run_dir, "baked", cwd=folder)
    assert result.returncode == 0, result.stderr
    for source, grid in ((run_dir, "mixed.png"), ("baked", "baked.png")):
        drawn = rememe_here("sample", source, "--num", 20, "--seed", 3, "--grid", grid, "--steps", 4, cwd=folder)
        assert drawn.returncode == 0, drawn.stderr
    mixed, baked = (np.asarray(Image.open(folder / name)).astype(int) for name in ("mixed.png", "baked.png"))
    assert np.abs(mixed - baked).max() <= 1
    assert mixed.std() > 10
    again = rememe_here("bake", run_dir, "baked", cwd=folder)
    assert again.returncode == 2
    assert "baked exists already" in again.stderr


def test_an_ensemble_in_no_run_keeps_what_is_measured_of_it_in_itself(
    folder: Path, run_dir: Path, rememe_here: Rememe
) -> None:
    place = folder / "elsewhere"
    place.mkdir()
    shutil.copytree(run_dir / "ensemble", place / "ensemble")
    own = {place / name: name.encode() for name in ("grid.png", "scores.json", "status.json")}
    for file, content in own.items():
        file.write_bytes(content)
    (place / "samples").mkdir()
    asked = ["--set", "num_samples=4", "--set", "sampling.num_steps=2"]
    result = rememe_here("evaluate", "elsewhere/ensemble", *asked, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {file: file.read_bytes() for file in own} == own
    assert {one.name for one in place.iterdir()} == {"ensemble", "samples"} | {file.name for file in own}
    assert not list((place / "samples").iterdir())
    assert (place / "ensemble" / "scores.json").is_file()
    looked = rememe_here("doctor", "elsewhere/ensemble", cwd=folder)
    assert looked.returncode == 0, looked.stdout
    assert "scores" in looked.stdout
    exported = rememe_here("export", "elsewhere/ensemble", "of-elsewhere", cwd=folder)
    assert exported.returncode == 0, exported.stderr


def test_exported_experts_are_models_of_diffusers(folder: Path, run_dir: Path, rememe_here: Rememe) -> None:
    result = rememe_here("export", run_dir, "exported", "--license", "mit", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "exported: a MultiExpertPipeline of 6 expert(s), and a model card" in result.stdout
    DiTTransformer2DModel.from_pretrained(folder / "exported" / "experts" / "expert_05")
    pipe = MultiExpertPipeline.from_pretrained(folder / "exported")
    drawn = rememe_here("sample", run_dir, "--num", 3, "--seed", 5, "--out", "images", cwd=folder)
    assert drawn.returncode == 0, drawn.stderr
    images = pipe(class_labels=[0, 1, 2], generator=sample_generators(5, 3)).images
    for index, image in enumerate(images):
        expected = np.asarray(Image.open(folder / "images" / f"{index:06d}.png"))[..., 0]
        assert np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= 1
    card = ModelCard.load(folder / "exported" / "README.md")
    (score,) = json.loads((run_dir / "scores.json").read_text()).values()
    assert f"| fd-fashion-cnn | {score['value']:.4g} +- {1.96 * score['stderr']:.2g} | 40 | tiny" in card.text
    assert card.data.license == "mit"
    refused = rememe_here("export", run_dir, "two", "--to", "wan", cwd=folder)
    assert refused.returncode == 2
    assert "--to wan is for two experts" in refused.stderr
    assert not (folder / "two").exists()


def test_a_comparison_prints_its_table_and_goes_on_where_it_was(
    tiny_remix: dict[str, Any], rememe_here: Rememe, cluster: None, tmp_path: Path
) -> None:
    base = {key: value for key, value in tiny_remix.items() if key not in {"name", "strategy", "execution"}}
    comparison = {
        "name": "tiny",
        "base": base,
        "budget_images": 128,
        "seeds": [0, 1],
        "rows": {
            "independent": {"strategy": {"kind": "independent", "num_experts": 2}},
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(comparison))
    result = rememe_here("compare", "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mean over 2 seeds +- half of its 95 % interval" in result.stdout
    with (tmp_path / "runs" / "tiny.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("base", "independent") for seed in "01"
    ]
    assert len({row["protocol_hash"] for row in rows}) == 1
    assert Image.open(tmp_path / "runs" / "tiny.png").height > 3 * 8
    for row in rows:
        plan = json.loads((tmp_path / "runs" / row["run"] / "plan.json").read_text())
        images = sum(job["images"] for job in plan["jobs"])
        assert images == (1024 if row["row"] == "base" else 128)
        assert 0 <= float(row["precision"]) <= 1
        assert float(row["latency_s"]) > 0
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "store").glob("*/result.json")}
    assert len(trained) == 2 * (1 + 2)
    again = rememe_here("compare", "tiny.yaml", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [(row["row"], row["score"]) for row in json.loads(again.stdout)] == [
        (row["row"], float(row["score"])) for row in rows
    ]
    assert trained == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "store").glob("*/result.json")}

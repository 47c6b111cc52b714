"""An export as a user makes and reads it: its card says what the run says, and the documented script runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from orchestrator.runs.export import export_run
from workloads.config import RunConfig
from workloads.config.load import load_config
from workloads.data.prepare import ensure_prepared
from workloads.ensemble import Ensemble
from workloads.evaluation.protocol import Score
from workloads.interop import MultiExpertPipeline
from workloads.interop.card import UNKNOWN, license_beside
from workloads.models.build import build_model
from workloads.models.dit import DiT
from workloads.pipeline import gather, score_ensemble
from workloads.places import RunDir
from workloads.training.job import train_job
from workloads.training.jobs import jobs_of

DOCUMENTED = Path(__file__).parents[2] / "docs" / "pipeline.md"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, few_images: dict[str, Any]) -> tuple[RunDir, Score]:
    """A remix of a checkpoint as the DiT paper's are (frequency_shift 0), trained and scored."""
    folder = tmp_path_factory.mktemp("remix")
    raw: dict[str, Any] = {
        "name": "tiny-remix",
        "data": few_images | {"class_conditional": True},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "frequency_shift": 0},
        "strategy": {"kind": "remix", "num_experts": 3, "num_bases": 2, "experts_per_step": 1},
        "initial_weights": str(folder / "published" / "DiT.pt"),
        "training": {"images": 64, "batch_size": 16},
        "evaluation": {
            "name": "tiny",
            "extractor": "fashion-cnn",
            "num_samples": 20,
            "sampling": {"num_steps": 4, "guidance_scale": 1.5},
        },
    }
    config = RunConfig.model_validate(raw)
    (folder / "published").mkdir()
    start: Any = build_model(config.model, channels=1, image_size=8, num_classes=10)
    torch.save({"ema": start.state_dict()}, folder / "published" / "DiT.pt")
    (folder / "published" / "LICENSE.txt").write_text("\nAttribution-NonCommercial 4.0 International\n\nmore of it\n")
    dataset = ensure_prepared(config.data, folder / "data")
    (job,) = jobs_of(config, dataset.spec(config.data))
    train_job(job, dataset.path, folder / "store")
    run = RunDir(folder / "run")
    ensemble = gather(run, config, dataset, [folder / "store"])
    score = score_ensemble(ensemble, config.evaluation, dataset, run, cache_dir=folder / "cache").score
    return run, score


def test_the_card_says_what_the_run_says(scored: tuple[RunDir, Score], tmp_path: Path) -> None:
    run, score = scored
    out = tmp_path / "exported"
    export_run(run.path, out, lambda *_: None, form="diffusers", expert=None, license_name="mit")
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "diffusers")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == (score.name, score.value)
    assert score.stderr is not None
    half = f"{1.96 * score.stderr:.2g}"
    assert f"| {score.name} | {score.value:.4g} +- {half} | 20 | tiny `{score.protocol_hash}` |" in card.text
    assert "not trustworthy" in card.text  # of 20 samples
    assert "Started from `DiT.pt`; its licence: Attribution-NonCommercial 4.0 International" in card.text
    assert "64 images seen in 1 job(s), batches of 16" in card.text
    assert "| 2 | [666, 1000) | `DiT` |" in card.text
    assert load_config(str(out / "run.yaml")) == Ensemble.load(run.path).config
    assert "rememe train run.yaml" in card.text
    for network in MultiExpertPipeline.from_pretrained(out).experts.experts:
        assert isinstance(network, DiT)
        assert network.config.frequency_shift == 0


@pytest.mark.parametrize(("form", "expert"), [("diffusers", None), ("diffusers", 1), ("safetensors", None)])
def test_what_a_card_says_to_type_runs(
    form: Any, expert: int | None, scored: tuple[RunDir, Score], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(scored[0].path, tmp_path / "out", lambda *_: None, form=form, expert=expert, license_name=None)
    text = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code.replace("PATH OF THIS DIRECTORY", "."), names)
    assert len(names["images"]) == 1 if form == "diffusers" else "x_embedder.proj.weight" in names["weights"]
    assert ("Not measured." in text) == (expert is not None)


def test_the_documented_script_runs(
    scored: tuple[RunDir, Score], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(scored[0].path, tmp_path / "exported", lambda *_: None, form="diffusers", expert=None, license_name=None)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["images"]) == 3
    assert {file.name for file in tmp_path.glob("*.png")} == {"0.png", "1.png", "2.png"}
    assert MultiExpertPipeline.from_pretrained("copy").labels == names["pipe"].labels


def test_a_licence_is_read_where_one_is_stated(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "transformer" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert license_beside(weights) is None
    (tmp_path / "model" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n\n# A model\n")
    assert license_beside(weights) == "cc-by-nc-4.0 (README.md beside it)"
    (tmp_path / "model" / "README.md").write_text("# No header\n")
    assert license_beside(weights) is None
    (tmp_path / "model" / "README.md").write_text("---\n: [\n---\n")
    (tmp_path / "model" / "LICENSE").write_text("MIT License\n")
    assert license_beside(weights.parent) == "MIT License (LICENSE beside it)"
    assert "find it out" in UNKNOWN

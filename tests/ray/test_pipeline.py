"""One pipeline, two entries: `python -m workloads run` and a configuration on a cluster come to the same."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from orchestrator.plan.places import RunsDir
from orchestrator.runs.configuration import train_configuration
from workloads.__main__ import main
from workloads.config import RunConfig
from workloads.places import RunDir
from workloads.training.result import completed

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

REMIX = {
    "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "strategy": {"kind": "remix", "num_experts": 6, "num_bases": 4},
}


class Results(NamedTuple):
    """What a run leaves that must not depend on who carried it out."""

    weights: dict[str, str]
    """SHA-256 of every job's weights, by content key."""

    samples: dict[str, bytes]
    """Every batch, by its file in the run directory."""

    score: dict[str, Any]


def results_of(run: RunDir, store: Path) -> Results:
    weights = {}
    for file in store.glob("*/result.json"):
        result = completed(file.parent)
        assert result is not None
        weights[result.key] = result.weights_sha256
    batches = run.path.glob("samples/*/batch_*.npy")
    samples = {str(file.relative_to(run.path)): file.read_bytes() for file in batches}
    ((key, score),) = json.loads(run.scores.read_text()).items()
    assert key == score["protocol_hash"]
    return Results(weights, samples, score)


def without_ray(raw: dict[str, Any], folder: Path) -> Results:
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    num_threads = torch.get_num_threads()
    try:
        assert main(["run", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 0
    finally:
        torch.set_num_threads(num_threads)
    return results_of(RunDir(folder / "out"), folder / "out" / "store")


def on_the_cluster(raw: dict[str, Any], folder: Path) -> Results:
    outcome = train_configuration(RunConfig.model_validate(raw), folder, address=None, evaluate=True)
    return results_of(outcome.run, RunsDir(folder).store)


@pytest.mark.parametrize(("changes", "num_jobs"), [({}, 4), (REMIX, 1)], ids=["meme", "remix"])
def test_both_entries_yield_the_same_weights_samples_and_score(
    tiny_run: dict[str, Any],
    few_images: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    num_jobs: int,
) -> None:
    # Else so few would be drawn in this process, as they are without Ray.
    monkeypatch.setattr("orchestrator.runs.work.FEW_SAMPLES_MACS", 0)
    training = tiny_run["training"] | {"images": 64}
    # Other images than those trained on: an entry that left `reference` out would measure under another protocol.
    data = {"kind": "embedded", "image_size": 8, "class_conditional": True}
    raw = tiny_run | {"training": training, "data": data, "reference": few_images} | changes
    alone, together = without_ray(raw, tmp_path / "alone"), on_the_cluster(raw, tmp_path / "runs")
    assert len(alone.weights) == num_jobs
    assert together.weights == alone.weights
    assert len(alone.samples) == 5
    assert together.samples == alone.samples
    assert together.score["protocol_hash"] == alone.score["protocol_hash"]
    assert alone.score["protocol"]["reference"]["num_images"] == 300
    # The features are computed by as many threads as the process has, so the last bits differ.
    assert together.score["value"] == pytest.approx(alone.score["value"], rel=1e-6)

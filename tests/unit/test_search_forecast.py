"""From a study's ledger and curves to proposals: what a user gets of --plan-from."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.jobs import architecture_of
from orchestrator.plan.places import RunsDir
from orchestrator.search.running.forecast import forecast_from_study
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial, UsedJob
from workloads.analysis.curves import LossCurve
from workloads.config import DataSpec, RunConfig
from workloads.config.load import validate
from workloads.errors import ConfigError

SPEC = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)
SHARES = ("1/4", "3/4")
SHARE_PATH = "strategy.experts.*.model.attention_share"


@pytest.fixture(scope="module")
def base(tiny_run: dict[str, Any]) -> dict[str, Any]:
    return tiny_run | {"strategy": {"kind": "meme", "experts": [{"specialisation": 0.5}] * 2}}


def make_study(base: dict[str, Any], **changes: Any) -> Study:
    space = {
        "strategy.cuts": {"boundaries": {"num_experts": 2, "step": 100}},
        SHARE_PATH: {"each": [["1/4"], ["3/4"]]},
    }
    return validate(Study, {"name": "next", "base": base, "space": space, "sampler": "grid"} | changes)


def earlier(base: dict[str, Any], folder: Path, latencies_s: dict[str, float | None]) -> RunsDir:
    """A study whose networks of share 1/4 are better below 300, those of 3/4 above."""
    runs = RunsDir(folder)
    ledger = Ledger(runs, "earlier")
    ledger.begin({})
    used = []
    for share in SHARES:
        experts = [{"specialisation": 0.5, "model": {"attention_share": [share]}}] * 2
        config = RunConfig.model_validate(base | {"strategy": {"kind": "meme", "experts": experts}})
        for job, bounds in zip(config.jobs(SPEC), ("low", "high"), strict=True):
            work_dir = runs.store / job.key
            (work_dir / "curves").mkdir(parents=True)
            (work_dir / "job.json").write_text(job.model_dump_json())
            losses = (0.1, 0.5) if share == "1/4" else (0.4, 0.2)
            (work_dir / "curves" / "c.json").write_text(json.dumps(LossCurve((0, 300, 1000), losses).to_json()))
            about = {"name": bounds, "interval": job.interval, "architecture": architecture_of(job.model)}
            costs = {"images": 64, "num_parameters": 10, "macs": 10, "latency_s": latencies_s[share]}
            used.append(UsedJob.model_validate({"key": job.key, **about, "label": share, **costs, "trained": True}))
    ledger.write(Trial.model_validate({"number": 0, "values": {}, "state": "finished", "jobs": used}))
    return runs


def test_the_best_cut_and_shares_are_proposed(base: dict[str, Any], tmp_path: Path) -> None:
    runs = earlier(base, tmp_path, dict.fromkeys(SHARES))
    forecast = forecast_from_study(make_study(base), "earlier", runs, num_best=2)
    best, second = forecast.proposals
    assert best.values["strategy.cuts"] == [300]
    shares = [best.values[f"strategy.experts.{index}.model.attention_share"] for index in (0, 1)]
    assert shares == [["1/4"], ["3/4"]]
    assert best.predicted_loss == pytest.approx(0.3 * 0.1 + 0.7 * 0.2)
    # Next best: the cut moves by a step; [200, 300) costs 0.4 instead of 0.1, or [300, 400) 0.5 instead of 0.2.
    assert second.predicted_loss == pytest.approx(best.predicted_loss + 0.1 * 0.3)
    assert Configurations(make_study(base)).admits(best.values)


def test_a_limit_on_latency_needs_timed_calls(base: dict[str, Any], tmp_path: Path) -> None:
    runs = earlier(base, tmp_path, dict.fromkeys(SHARES))
    with pytest.raises(ConfigError, match="study earlier has timed no calls"):
        forecast_from_study(make_study(base, limits={"latency_s": 0.5}), "earlier", runs, num_best=1)


def test_a_limit_on_latency_is_kept(base: dict[str, Any], tmp_path: Path) -> None:
    """Mean seconds are 0.2 + 0.8 of the steps above the cut; 0.5 allows 375 timesteps, and steps of 100 only 300."""
    runs = earlier(base, tmp_path, {"1/4": 0.2, "3/4": 1.0})
    (best,) = forecast_from_study(make_study(base, limits={"latency_s": 0.5}), "earlier", runs, num_best=1).proposals
    assert best.values["strategy.cuts"] == [700]
    assert best.predicted_loss == pytest.approx((300 * 0.1 + 400 * 0.5 + 300 * 0.2) / 1000)


def test_a_study_without_losses_forecasts_nothing(base: dict[str, Any], tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    ledger = Ledger(runs, "earlier")
    ledger.begin({})
    ledger.write(Trial(number=0, values={}))
    with pytest.raises(ConfigError, match=r"give it ladder\.held_out"):
        forecast_from_study(make_study(base), "earlier", runs, num_best=1)

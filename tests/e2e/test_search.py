"""A study from the command line: killed and gone on with, each expert trained once, mistakes found early."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from waiting import wait_until

from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.trial import Trial

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_slot")]

Rememe = Callable[..., "subprocess.CompletedProcess[str]"]
NAME = "tiny-study"


def write_study(tiny_run: dict[str, Any], folder: Path, **changes: Any) -> None:
    experts = [{"specialisation": 0.8}, {"specialisation": 0.2}]
    base = tiny_run | {"data": tiny_run["data"] | {"held_out": 100}, "strategy": {"kind": "meme", "experts": experts}}
    study = {
        "name": NAME,
        "base": base,
        "space": {"strategy.experts.*.model.attention_share": {"each": [["1/4"], ["3/4"]], "monotone": True}},
        "sampler": "grid",
        "budget": {"num_configurations": 3},
        "ladder": {
            "held_out": {"num_images": 32, "num_bins": 8},
            "quick": {"num_samples": 24, "sampling": {"num_steps": 2}},
            "finalists": 1,
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))


def trials_of(folder: Path) -> list[Trial]:
    return Ledger(RunsDir(folder / "runs"), NAME).trials()


def runs_of(folder: Path) -> list[Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rememe")
    return list(client.search_runs([experiment.experiment_id]))


def family(pid: int) -> list[int]:
    """The processes below one."""
    lists = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(word) for words in lists for word in words]
    return [*children, *(one for child in children for one in family(child))]


def command_of(pid: int) -> bytes:
    """Empty if there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until_gone(pids: list[int]) -> None:
    """Ray's agents are the last; by its own settings they stay for a minute."""

    def left() -> list[bytes]:
        return [command for pid in pids if b"ray" in (command := command_of(pid))]

    wait_until(lambda: not left(), left, timeout_s=30)


def wait_for_a_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> None:
    store = folder / "runs" / "store"
    wait_until(lambda: list(store.glob("*/checkpoints/*")), process=process)


def test_a_study_survives_kill_and_trains_each_expert_once(
    tiny_run: dict[str, Any],
    rememe_here: Rememe,
    start_rememe: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
) -> None:
    write_study(tiny_run, tmp_path)
    planned = json.loads(rememe_here("plan", "study.yaml", "--json", cwd=tmp_path).stdout)
    assert (planned["num_configurations"], planned["num_distinct_jobs"]) == (3, 4)

    process = start_rememe("search", "study.yaml", cwd=tmp_path)
    wait_for_a_checkpoint(tmp_path, process)
    cluster = family(process.pid)
    assert len(cluster) > 4
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for file in (tmp_path / "runs" / "studies" / NAME / "tune").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])

    result = rememe_here("search", "study.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    wait_until_gone(cluster)
    store = tmp_path / "runs" / "store"
    assert {file.parent.name for file in store.glob("*/result.json")} == {job["key"] for job in planned["jobs"]}

    trials = trials_of(tmp_path)
    assert [(trial.number, trial.state) for trial in trials] == [(0, "finished"), (1, "finished"), (2, "finished")]
    assert sum(job.trained for trial in trials for job in trial.jobs) == 4
    assert sum(trial.images_trained for trial in trials) == 4 * 1024
    assert sum(trial.images_reused for trial in trials) == 2 * 1024
    full = [trial for trial in trials if trial.rung("full")]
    quick = {trial.number: rung.value for trial in trials if (rung := trial.rung("quick"))}
    assert [trial.number for trial in full] == [min(quick, key=quick.__getitem__)]

    runs = runs_of(tmp_path)
    study = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(study) == 1
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study[0].info.run_id]
    assert sorted(run.data.tags["rememe.number"] for run in below) == ["0", "1", "2"]
    experts = [run for run in runs if "rememe.key" in run.data.tags]
    assert len(experts) == 4
    for run in below:
        trial = trials[int(run.data.tags["rememe.number"])]
        links = {value for tag, value in run.data.tags.items() if tag.startswith("rememe.run_of.")}
        assert links == {
            one.info.run_id for one in experts if one.data.tags["rememe.key"] in {j.key for j in trial.jobs}
        }
        assert run.data.tags["rememe.trustworthy.quick"].startswith("no: 24 samples are too few for 128 features")
        assert run.data.metrics["fd-fashion-cnn_quick"] == pytest.approx(quick[trial.number])
        assert float(run.data.params["space.strategy.experts.0.model.attention_share.0"]) in {0.25, 0.75}
    assert study[0].data.metrics["factor_saved"] == pytest.approx(1.5)

    with (tmp_path / "runs" / f"{NAME}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    again = rememe_here("search", "study.yaml", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert [one["rungs"][-1]["value"] for one in told] == [trial.rungs[-1].value for trial in trials]
    assert [trial.model_dump() for trial in trials_of(tmp_path)] == [trial.model_dump() for trial in trials]
    assert len(runs_of(tmp_path)) == len(runs)

    _check_what_reads_it(tiny_run, rememe_here, tmp_path)


def _check_what_reads_it(tiny_run: dict[str, Any], rememe_here: Rememe, folder: Path) -> None:
    """Report, store, a planned search, and refusals, on what the test above has left."""
    page = (folder / "runs" / "studies" / NAME / "report.html").read_text()
    assert "6 experts together: 4 were trained for it and 2 reused" in page
    assert "not trustworthy: 24 samples are too few" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    listed = json.loads(rememe_here("store", "ls", "--json", cwd=folder).stdout)
    assert [entry["state"] for entry in listed] == ["finished"] * 4
    assert sum(entry["num_users"] for entry in listed) == 6
    assert "nothing to remove" in rememe_here("store", "gc", cwd=folder).stdout

    write_study(tiny_run, folder, space={"training.learning_rate": {"choice": [1e-3]}})
    changed = rememe_here("search", "study.yaml", cwd=folder)
    assert changed.returncode == 2
    assert "name=tiny-study-2" in changed.stderr

    write_study(tiny_run, folder, name="planned", budget={"num_configurations": 1})
    result = rememe_here("search", "study.yaml", "--plan-from", NAME, cwd=folder)
    assert result.returncode == 0, result.stderr
    (trial,) = Ledger(RunsDir(folder / "runs"), "planned").trials()
    loss = trial.rung("loss")
    assert loss is not None
    assert trial.origin == "planner"
    # Its experts are those that were measured, so the prediction is the measurement itself.
    assert trial.predicted_loss == pytest.approx(loss.value, rel=1e-6)
    assert trial.images_trained == 0


def test_a_larger_remix_grows_from_a_smaller_one(tiny_run: dict[str, Any], rememe_here: Rememe, tmp_path: Path) -> None:
    """One after the other under Ray Tune, each trained by a group."""
    base = tiny_run | {
        "data": tiny_run["data"] | {"held_out": 100},
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 2, "num_bases": 2, "experts_per_step": 2},
        "training": tiny_run["training"] | {"images": 256},
        "evaluation": tiny_run["evaluation"] | {"num_samples": 24, "sampling": {"num_steps": 2}},
    }
    grown = {"warm_growth": 0.5, "max_concurrent": 1, "ladder": {"held_out": {"num_images": 32, "num_bins": 8}}}
    write_study(
        tiny_run,
        tmp_path,
        base=base,
        space={"strategy.num_experts": {"choice": [2, 4]}, "strategy.num_bases": {"choice": [2]}},
        conditions=["strategy.num_bases <= strategy.num_experts"],
        **grown,
    )
    result = rememe_here("search", "study.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    small, large = trials_of(tmp_path)
    assert (small.state, small.grown_from, small.images_trained) == ("finished", None, 256)
    assert (large.state, large.grown_from, large.images_trained) == ("finished", 0, 128)
    losses = [rung.value for trial in (small, large) if (rung := trial.rung("loss")) is not None]
    # It goes on from there: trained anew, the larger one is above the smaller after 128 images (1.058 and 1.051).
    assert losses[1] < losses[0]
    job = json.loads((tmp_path / "runs" / "store" / large.jobs[0].key / "job.json").read_text())
    small_weights = json.loads((tmp_path / "runs" / "store" / small.jobs[0].key / "result.json").read_text())
    assert job["initial"]["sha256"] == small_weights["weights_sha256"]
    assert "grown from #0" in (tmp_path / "runs" / "studies" / NAME / "report.html").read_text()


def test_mistakes_are_found_before_anything_starts(
    tiny_run: dict[str, Any], rememe_here: Rememe, tmp_path: Path
) -> None:
    write_study(tiny_run, tmp_path, space={"training.batchsize": {"choice": [1, 2]}})
    result = rememe_here("search", "study.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'batch_size'?" in result.stderr
    assert result.stdout == ""
    missing = rememe_here("search", "search-ratio", cwd=tmp_path)
    assert missing.returncode == 2
    assert "Known: demo-search, search-ratios" in missing.stderr
    write_study(tiny_run, tmp_path, budget={"images_trained": 10})
    poor = rememe_here("search", "study.yaml", cwd=tmp_path)
    assert poor.returncode == 2
    assert "the cheapest configuration trains on 2048 images" in poor.stderr
    unknown = rememe_here("report", "nothing", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "no study, comparison or run 'nothing'" in unknown.stderr

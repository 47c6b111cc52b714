"""Nodes that share nothing but an S3 server: raylets with directories of their own, and a driver with another."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from s3fs import S3FileSystem
from waiting import wait_until

from orchestrator.execution.cluster import connect
from orchestrator.execution.nodes import refuse_unfit_nodes
from orchestrator.plan.places import RunsDir
from orchestrator.runs.configuration import Outcome, evaluate_run, train_configuration
from orchestrator.runs.stored import run_at_hand, runs_to_look_at
from orchestrator.search.report.page import write_report
from orchestrator.search.running.search import SearchOptions, run_study
from orchestrator.search.running.status import status_here
from orchestrator.search.study.stored import bring_study
from orchestrator.search.study.study import Study
from orchestrator.store import remote as remote_store
from orchestrator.store.experts import ExpertStore
from orchestrator.store.sites import SharedSite, StorageSite
from orchestrator.store.storage import Storage
from workloads.config import RunConfig
from workloads.config.load import validate
from workloads.errors import ConfigError

pytestmark = pytest.mark.ray

OBJECT_STORE = {"object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def nodes(s3: int) -> Iterator[Cluster]:
    """A head that holds no expert."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **OBJECT_STORE})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster, folder: Path) -> Any:
    """A machine of one expert, with an empty disk of its own."""
    folder.mkdir()
    return cluster.add_node(num_cpus=1, env_vars={"REMEME_CACHE_DIR": str(folder)}, **OBJECT_STORE)


@pytest.fixture
def config(tiny_run: dict[str, Any]) -> RunConfig:
    """What two nodes train together for some seconds, with a checkpoint every few hundred images."""
    changes = {
        "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "strategy": {"kind": "remix", "num_experts": 4, "num_bases": 2},
        "execution": {"num_workers": 2},
        "training": tiny_run["training"] | {"images": 2560, "checkpoint_every_images": 256},
    }
    return RunConfig.model_validate(tiny_run | changes)


def test_a_killed_run_goes_on_elsewhere_from_nothing_but_the_storage(
    nodes: Cluster,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Driver and nodes are lost with their disks; others end in the weights, samples and score of an unbroken run."""
    uri, names = "s3://bucket/runs", ("a", "b", "c", "d")
    # One database, for making one takes seconds.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lost = [add_node(nodes, tmp_path / name) for name in names[:2]]
    kept = killed_after_checkpoints(config, uri, nodes.address, tmp_path / "driver-a")
    for node in lost:
        nodes.remove_node(node)
    others = [add_node(nodes, tmp_path / name) for name in names[2:]]
    # Of a driver that is gone, as soon as this one has watched it for a moment.
    monkeypatch.setattr(remote_store, "LEASE_S", 2.0)
    with connect(nodes.address):
        resumed = train_configuration(config, tmp_path / "driver-b", address=None, evaluate=True, storage=uri)
        unbroken = train_configuration(config, tmp_path / "shared", address=None, evaluate=True)
    assert [result.weights_sha256 for result in resumed.results] == [one.weights_sha256 for one in unbroken.results]
    assert resumed.score == unbroken.score
    assert f"kept in      {uri}/{resumed.run.path.name}\n" in capsys.readouterr().out
    # Speed is measured, so records of the first driver cannot have been made again.
    for key, records in kept.items():
        assert RunsDir(tmp_path / "driver-b").job(key).records.read_text().startswith(records)
    check_storage(resumed, uri)
    for name in names[2:]:  # nothing but what the cache holds
        assert not any((tmp_path / name / "jobs").glob("*"))
    for node in others:
        nodes.remove_node(node)


def killed_after_checkpoints(config: RunConfig, uri: str, address: str, folder: Path) -> dict[str, str]:
    """Kill a driver when every job has a checkpoint in the storage; the records that lie with it, by key."""
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "orchestrator.cli", "train", "run.yaml", "--storage", uri, "--address", address]
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ)
    files = S3FileSystem()
    found: dict[str, str] = {}

    def all_have_one() -> bool:
        nonlocal found
        files.invalidate_cache()
        indices = files.glob(f"{uri}/store/*/checkpoints/*/index.json")
        found = {index.split("/")[3]: index for index in sorted(indices)}
        return len(found) == config.strategy.num_jobs

    try:
        wait_until(all_have_one, (folder / "log").read_text, process=driver, interval_s=0.2)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    attempts = {key: json.loads(files.cat_file(index))["attempt"] for key, index in found.items()}
    return {
        key: files.cat_file(f"{index.removesuffix('index.json')}{attempts[key]}/records.jsonl").decode()
        for key, index in found.items()
    }


def check_storage(outcome: Outcome, uri: str) -> None:
    """Everything a user looks at is there; what served training only is not."""
    files, run = S3FileSystem(), outcome.run.path.name
    files.invalidate_cache()
    there = {path.removeprefix(f"bucket/runs/{run}/") for path in files.find(f"{uri}/{run}")}
    assert {"config.yaml", "scores.json", "grid.png", "figures/training_loss.png", "ensemble/ensemble.json"} <= there
    (score,) = json.loads(files.cat_file(f"{uri}/{run}/scores.json")).values()
    assert outcome.score is not None
    assert score["value"] == outcome.score.value
    assert files.glob(f"{uri}/store/*/checkpoints/*") == []
    assert files.glob(f"{uri}/store/*/lease-*") == []


def test_a_study_goes_on_elsewhere_and_is_read_there(
    nodes: Cluster,
    tiny_run: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two drivers with directories of their own, then a third who only looks: the storage is all they share."""
    uri = "s3://bucket/search"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    add_node(nodes, tmp_path / "node")
    options = SearchOptions(storage_uri=uri)
    with connect(nodes.address):
        (begun,) = run_study(study_of(tiny_run, 1), tmp_path / "first", options)
        known, other = run_study(study_of(tiny_run, 2), tmp_path / "second", options)
        assert known == begun
        assert [(job.trained, job.brief) for job in other.jobs] == [(False, False), (True, False)]
        run = run_at_hand(Path(other.runs[0]), tmp_path / "third", uri, is_changed=True)
        with run as folder:
            changed = {"protocol": None, "overrides": ["num_samples=24"], "address": None}
            evaluate_run(folder, tmp_path / "third", storage=uri, **changed)
    files = S3FileSystem()
    files.invalidate_cache()
    assert len(json.loads(files.cat_file(f"{uri}/{other.runs[0]}/scores.json"))) == 2
    assert files.exists(f"{uri}/shares.csv")
    assert files.glob(f"{uri}/studies/shares/lease-*") == []
    bring_study("shares", RunsDir(tmp_path / "third"), Storage.at(uri))
    page = write_report(tmp_path / "third", "shares", None).read_text()
    assert "4 experts together: 3 were trained for it and 1 reused" in page
    runs = runs_to_look_at(tmp_path, uri)
    assert [one.state for one in status_here("shares", runs).configurations] == ["finished"] * 2


def study_of(tiny_run: dict[str, Any], num_configurations: int) -> Study:
    """Configurations of two experts of which the first is always the same."""
    experts = [{"specialisation": 0.8}, {"specialisation": 0.2}]
    base = {
        "data": tiny_run["data"] | {"held_out": 100},
        "strategy": {"kind": "meme", "experts": experts},
    }
    return validate(
        Study,
        {
            "name": "shares",
            "base": tiny_run | base,
            "space": {"strategy.experts.1.specialisation": {"choice": [0.2, 0.4]}},
            "sampler": "grid",
            "budget": {"num_configurations": num_configurations},
            "ladder": {"held_out": {"num_images": 32, "num_bins": 8}},
        },
    )


def test_a_directory_that_one_node_does_not_see_is_refused_with_its_name(nodes: Cluster, tmp_path: Path) -> None:
    """A node on which the path leads elsewhere stands for a machine with a disk of its own."""
    store = ExpertStore(tmp_path / "store")
    add_node(nodes, tmp_path / "disk")
    with connect(nodes.address):
        refuse_unfit_nodes(store.site)
        elsewhere = SharedSite(store.root, "of another directory")
        with pytest.raises(
            ConfigError, match=r"not the same directory on node [\d.]+ \(.+\); set --runs-dir"
        ) as caught:
            refuse_unfit_nodes(elsewhere)
        assert caught.value.exit_code == 2
        with pytest.raises(ConfigError, match=r"on node [\d.]+ \(.+\), --storage cannot be used: .* check the name"):
            refuse_unfit_nodes(StorageSite(Storage("s3://mistyped/runs", 10**9)))
        refuse_unfit_nodes(StorageSite(Storage("s3://bucket/runs", 10**9)))

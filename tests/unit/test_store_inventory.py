"""`rememe store`: what is there, what is damaged, and what nothing needs; gc deletes only that."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from orchestrator.cli.store import store_gc, store_ls, store_repair, store_verify
from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.trial import Trial
from orchestrator.store.experts import ExpertStore
from orchestrator.store.inventory import GIVEN_UP_S, UNTOUCHED_S
from orchestrator.store.remote import RemoteStore
from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.errors import ConfigError
from workloads.places import CacheDir, JobDir
from workloads.training.job import train_job
from workloads.training.records import read_records


@pytest.fixture(scope="module")
def trained(tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A runs directory with two trained experts, and their keys."""
    folder = tmp_path_factory.mktemp("trained")
    strategy = {"kind": "independent", "num_experts": 2}
    training = {"images": 32, "batch_size": 16}
    config = RunConfig.model_validate(tiny_run | {"strategy": strategy, "training": training})
    dataset = ensure_prepared(config.data, folder / "data")
    jobs = config.jobs(dataset.spec(config.data))
    store = ExpertStore(RunsDir(folder).store)
    for job in jobs:
        train_job(job, dataset.path, store.path(job.key))
    return folder, [job.key for job in jobs]


@pytest.fixture
def keys(trained: tuple[Path, list[str]], tmp_path: Path) -> list[str]:
    """Two trained experts, the first needed by a run, and a third that was only begun."""
    folder, keys = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ExpertStore(RunsDir(tmp_path).store).path("begun").mkdir()
    (tmp_path / "some-run").mkdir()
    (tmp_path / "some-run" / "plan.json").write_text(json.dumps({"jobs": [{"key": keys[0]}]}))
    return keys


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, int]]:
    capsys.readouterr()
    store_ls(folder, json=True)
    return {entry["key"]: (entry["state"], entry["num_users"]) for entry in json.loads(capsys.readouterr().out)}


def exit_code(folder: Path) -> int:
    """Of `rememe store verify`."""
    with pytest.raises(typer.Exit) as ended:
        store_verify(folder)
    return ended.value.exit_code


def test_what_is_there(tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = ExpertStore(RunsDir(tmp_path).store)
    claim = store.claim("begun")
    assert claim is not None
    found = listed(tmp_path, capsys)
    assert found == {keys[0]: ("finished", 1), keys[1]: ("finished", 0), "begun": ("training", 0)}
    claim.release()
    store_ls(tmp_path, json=False)
    assert "[0, 500)" in capsys.readouterr().out


def test_a_flipped_byte_is_found(tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(tmp_path) == 0
    said = "2 of 2 finished jobs are whole; 1 are begun only, and their checkpoints are looked at"
    assert said in capsys.readouterr().out
    (file,) = ExpertStore(RunsDir(tmp_path).store).path(keys[1]).rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert exit_code(tmp_path) == 1
    out = capsys.readouterr().out
    assert keys[1] in out
    assert "1 of 2 finished" in out


def test_what_a_uri_holds_is_listed_too(tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    uri, store = (tmp_path / "remote" / "store").as_uri(), ExpertStore(RunsDir(tmp_path).store)
    RemoteStore(uri).publish(keys[0], store.path(keys[0]))
    lease = RemoteStore(uri).claim(keys[1])
    assert lease is not None
    for where in ({"store": uri}, {"storage": uri.removesuffix("/store")}):
        store_ls(tmp_path / "elsewhere", **where, json=True)
        entries = {entry["key"]: entry for entry in json.loads(capsys.readouterr().out)}
        assert {key: entry["state"] for key, entry in entries.items()} == {keys[0]: "finished", keys[1]: "training"}
        there = [file for file in (tmp_path / "remote").rglob("attempt-*/**/*") if file.is_file()]
        assert entries[keys[0]]["num_bytes"] == sum(file.stat().st_size for file in there) > 0
        assert entries[keys[0]]["path"] == f"{uri}/{keys[0]}"
    store_ls(tmp_path / "elsewhere", store=uri)
    assert "[0, 500)" in capsys.readouterr().out
    lease.release()
    with pytest.raises(ConfigError, match="leave one out"):
        store_ls(tmp_path, store=uri, storage=uri)


def test_gc_removes_what_nothing_needs_and_only_when_told(
    tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(RunsDir(tmp_path), "s")
    ledger.begin({})
    store = ExpertStore(RunsDir(tmp_path).store)
    claim = store.claim("begun")
    assert claim is not None
    store_gc(tmp_path, yes=False)
    assert "1 jobs" in capsys.readouterr().out
    assert len(listed(tmp_path, capsys)) == 3
    store_gc(tmp_path, yes=True)
    # What is being trained stays though no configuration is known to contain it yet.
    assert set(listed(tmp_path, capsys)) == {keys[0], "begun"}
    claim.release()
    used: dict[str, Any] = {"key": "begun", "name": "e", "interval": [0, 500], "architecture": "a", "label": "a"}
    used |= {"images": 1, "num_parameters": 1, "macs": 1, "trained": True}
    ledger.write(Trial.model_validate({"number": 0, "values": {}, "jobs": [used]}))
    store_gc(tmp_path, yes=True)
    assert set(listed(tmp_path, capsys)) == {keys[0], "begun"}


def test_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no expert store"):
        store_verify(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"jobs": [{"ky": "x"}]}', '{"jobs": 3}'])
def test_what_cannot_be_read_counts_as_in_use(
    tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "some-run" / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.json is damaged, .* none is removed"):
        store_gc(tmp_path, yes=True)
    assert listed(tmp_path, capsys).keys() == {*keys, "begun"}


def test_a_damaged_description_is_listed_as_such(
    tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("job.json", "result.json"):
        (ExpertStore(RunsDir(tmp_path).store).path(keys[0]) / name).write_text('{"name": [], "model": 3}')
    store_ls(tmp_path, json=False)
    assert "damaged job.json or result.json" in capsys.readouterr().out


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_repair_sets_aside_what_is_broken_and_only_that(
    tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = ExpertStore(RunsDir(tmp_path).store)
    broken, whole, begun = (JobDir(store.path(key)) for key in (*keys, "begun"))
    folder = CheckpointFolder(begun.checkpoints, "begun")
    for images_seen in (16, 32):
        folder.save(Checkpoint(images_seen, {"w": torch.zeros(8)}))
    flip(broken.expert / "config.json")
    flip(begun.checkpoints / f"{32:012d}" / "state.safetensors")
    whole.records.write_text(whole.records.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(typer.Exit):
        store_verify(tmp_path, json=True)
    damaged = {Path(one["path"]) for one in json.loads(capsys.readouterr().out)}
    assert damaged == {broken.path, begun.checkpoints / f"{32:012d}", whole.records}
    claim = store.claim("begun")
    assert claim is not None
    store_repair(tmp_path, yes=True)
    assert begun.checkpointed_images() == 32  # whoever trains it goes on from the one before
    claim.release()
    assert set(listed(tmp_path, capsys)) - {keys[1], "begun"} == {
        path.name for path in store.root.glob(f"damaged-{keys[0]}-*")
    }
    store_repair(tmp_path, yes=True)
    out = capsys.readouterr().out
    assert "checkpoints/000000000032 was moved to damaged-000000000032-" in out
    assert begun.checkpointed_images() == 16
    assert read_records(whole.records) == []
    assert store.completed(keys[0]) is None
    assert store.completed(keys[1]) is not None
    assert exit_code(tmp_path) == 0


def test_gc_removes_what_kills_have_left(tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = ExpertStore(RunsDir(tmp_path).store)
    finished = JobDir(store.path(keys[0]))
    CheckpointFolder(finished.checkpoints, keys[0]).save(Checkpoint(16, {"w": torch.zeros(8)}))
    fetched, fetching = store.root / ".abc.123.partial", store.root / ".def.123.partial"
    for folder in (fetched, fetching):
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 1000)
    long_ago_s = time.time() - 2 * UNTOUCHED_S
    for path in (fetched / "weights", fetched):
        os.utime(path, (long_ago_s, long_ago_s))
    blocks = CacheDir(RunsDir(tmp_path).cache).blocks
    blocks.mkdir(parents=True)
    for number in range(2):
        (blocks / f"{number}.safetensors").write_bytes(b"x")
    given_up_s = time.time() - 2 * GIVEN_UP_S
    os.utime(blocks / "0.safetensors", (given_up_s, given_up_s))
    store_gc(tmp_path, yes=False)
    out = capsys.readouterr().out
    assert "2 leftovers" in out  # a score has just added to the features
    assert "features" not in out
    for path in (blocks / "1.safetensors", blocks):
        os.utime(path, (given_up_s, given_up_s))
    store_gc(tmp_path, yes=False, json=True)
    listed_now = json.loads(capsys.readouterr().out)
    assert listed_now[-1] == {
        "path": str(blocks),
        "what": "features of measurements that did not end",
        "num_bytes": 2,
        "is_removed": False,
    }
    assert len(listed_now) == 5  # with two jobs
    store_gc(tmp_path, yes=False)
    out = capsys.readouterr().out
    assert "3 leftovers" in out
    assert f"checkpoints of the finished job {keys[0]}" in out
    assert finished.checkpoints.is_dir()
    store_gc(tmp_path, yes=True)
    assert not finished.checkpoints.exists()
    assert not fetched.exists()
    assert not blocks.exists()
    assert (fetching / "weights").exists()
    assert store.completed(keys[0]) is not None

"""`rememe store`: what is there, what is damaged, and what nothing needs; gc deletes only that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.store import store_gc, store_ls, store_verify
from orchestrator.plan.places import RunsDir
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.trial import Trial
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.errors import ConfigError
from workloads.training.job import train_job


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
    assert "2 of 2 finished jobs are whole" in capsys.readouterr().out
    (file,) = ExpertStore(RunsDir(tmp_path).store).path(keys[1]).rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert exit_code(tmp_path) == 1
    out = capsys.readouterr().out
    assert keys[1] in out
    assert "1 of 2" in out


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

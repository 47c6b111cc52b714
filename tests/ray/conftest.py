"""A tiny configuration to train on the cluster of a module."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset


@pytest.fixture(autouse=True)
def promptly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test does to a training in its middle must find it there: on a fast machine a second is all of it."""
    monkeypatch.setattr("orchestrator.execution.supervisor.POLL_INTERVAL_S", 0.1)


@pytest.fixture(scope="module")
def config(tiny_run: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(tiny_run)


@pytest.fixture(scope="module")
def dataset(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(config.data, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def planned(config: RunConfig, dataset: PreparedDataset) -> Plan:
    return make_plan(config, dataset.spec(config.data))


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(tmp_path / "store")

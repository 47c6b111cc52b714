"""Experts that several workers train together: side by side, a worker's death, a stop; the bits of torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.cluster import connect
from orchestrator.execution.supervisor import train_experts
from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.policies import FailureKind
from orchestrator.store.experts import ExpertStore
from workloads.config import RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.places import SharedDir
from workloads.training.result import completed

pytestmark = pytest.mark.ray

IMAGES = 2880
"""Enough of them for both groups to train at the same time."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Places for two groups of two."""
    with connect(None, num_cpus=4):
        yield


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often enough to catch tiny experts in the act."""
    monkeypatch.setattr("orchestrator.execution.supervisor.POLL_INTERVAL_S", 0.1)


@pytest.fixture(scope="module")
def raw(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """Two experts of two workers each."""
    experts = tiny_run["strategy"]["experts"][:2]
    training = tiny_run["training"] | {"images": IMAGES}
    execution = {"workers_per_expert": 2, "max_attempts": 2}
    return tiny_run | {"strategy": {"kind": "meme", "experts": experts}, "training": training, "execution": execution}


@pytest.fixture(scope="module")
def plan(raw: dict[str, Any], dataset: PreparedDataset) -> Plan:
    config = RunConfig.model_validate(raw)
    return make_plan(config, dataset.spec(config.data))


@pytest.fixture(scope="module")
def under_torchrun(raw: dict[str, Any], plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each expert's weights after `python -m workloads train` with four ranks, two for each expert."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "tiny.yaml").write_text(json.dumps(raw))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4", f"--master-port={port}"]
    command = [*launcher, "-m", "workloads", "train", str(folder / "tiny.yaml"), "--out", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    found = {job.key: completed(SharedDir(folder).job(job.key).path) for job in plan.jobs}
    return {key: one.weights_sha256 for key, one in found.items() if one is not None}


class Journal:
    """Remembers, and acts once when so many experts have got somewhere."""

    def __init__(self, act: Any, num_experts: int) -> None:
        self.heard: list[ExpertEvent] = []
        self._act, self._num_experts = act, num_experts

    def __call__(self, event: ExpertEvent) -> None:
        self.heard.append(event)
        if len({one.key for one in self.of(events.Checkpointed)}) == self._num_experts and self._act is not None:
            act, self._act = self._act, None
            act()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


def actor_pids() -> list[int]:
    """Processes of this cluster that train, told by its token."""
    found, token = [], os.environ["RAY_AUTH_TOKEN"].encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::ExpertActor" in (entry / "cmdline").read_bytes() and token in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def test_groups_side_by_side_survive_a_death_and_a_stop_with_the_bits_of_torchrun(
    cluster: None, plan: Plan, dataset: PreparedDataset, store: ExpertStore, under_torchrun: dict[str, str]
) -> None:
    execution = plan.config.execution
    stopping = Journal(lambda: os.kill(os.getpid(), signal.SIGINT), num_experts=2)
    outcome = train_experts(plan.jobs, dataset.path, store, execution, [stopping])
    assert not outcome.failed
    assert [event.num_workers for event in stopping.of(events.Starting)] == [2, 2]
    assert set(outcome.stopped) == set(plan.by_key)  # both were at it
    assert all(list(store.path(key).glob("checkpoints/*")) for key in outcome.stopped)

    killing = Journal(lambda: os.kill(actor_pids()[-1], signal.SIGKILL), num_experts=1)
    outcome = train_experts(plan.jobs, dataset.path, store, execution, [killing])
    assert outcome.failed == {}
    assert [event.cause for event in killing.of(events.Restarting)] == [FailureKind.PROCESS_DIED]
    assert {key: result.weights_sha256 for key, result in outcome.completed.items()} == under_torchrun

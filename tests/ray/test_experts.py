"""Experts as Ray actors: queueing, death, failure, stopping; the weights are those of a plain loop."""

import json
import os
import re
import signal
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from damaging import damage
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from waiting import wait_until

from orchestrator.execution.actor import ExpertActor
from orchestrator.execution.metrics import ClusterMetrics
from orchestrator.execution.supervisor import train_experts
from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import Plan
from orchestrator.plan.outcome import TrainingOutcome
from orchestrator.plan.policies import FailureKind
from orchestrator.store.experts import ExpertStore
from orchestrator.store.sites import SharedSite
from workloads.config import ExecutionConfig, Resources
from workloads.data.prepared import PreparedDataset
from workloads.training.job import train_job
from workloads.training.records import TrainingRecord

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny experts are done within a second; look often enough to catch them in the act."""
    monkeypatch.setattr("orchestrator.execution.supervisor.POLL_INTERVAL_S", 0.1)


class Journal:
    """A listener that remembers, and acts when it hears of an expert's progress."""

    def __init__(self, on_progress: Any = lambda key, pid, images_seen: None) -> None:
        self.states: list[tuple[str, str]] = []
        self.pids: dict[str, int] = {}
        self.images_seen: dict[str, list[int]] = {}
        self.checkpoints: dict[str, list[int]] = {}
        self.restarts: list[events.Restarting] = []
        self._on_progress = on_progress

    def __call__(self, event: ExpertEvent) -> None:
        match event:
            case events.Progressed(key=key, records=records):
                self.images_seen.setdefault(key, []).extend(record.images_seen for record in records)
                if key in self.pids:
                    self._on_progress(key, self.pids[key], records[-1].images_seen)
                return
            case events.Checkpointed(key=key, images_seen=images_seen):
                self.checkpoints.setdefault(key, []).append(images_seen)
                return
            case events.Training(key=key, pid=int(pid)):
                self.pids[key] = pid
            case events.Restarting():
                self.restarts.append(event)
        self.states.append((event.key, event.state.value))

    def count(self, state: str) -> int:
        return sum(seen == state for _, seen in self.states)


def run(planned: Plan, dataset: PreparedDataset, store: ExpertStore, *listeners: Journal) -> TrainingOutcome:
    return train_experts(planned.jobs, dataset.path, store, ExecutionConfig(), listeners)


@pytest.fixture(scope="module")
def expected(planned: Plan, dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each expert's weights when trained one after the other in this process, without Ray."""
    num_threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("plain")
    try:
        return {
            job.key: train_job(job.job, dataset.path, folder / job.key, num_threads=1).weights_sha256
            for job in planned.jobs
        }
    finally:
        torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def pair(planned: Plan) -> Plan:
    """Of the four, two: as many as there are slots."""
    return replace(planned, jobs=planned.jobs[:2])


@pytest.fixture(scope="module")
def expected_of_pair(pair: Plan, expected: dict[str, str]) -> dict[str, str]:
    return {job.key: expected[job.key] for job in pair.jobs}


def digests(outcome: TrainingOutcome) -> dict[str, str]:
    return {key: result.weights_sha256 for key, result in outcome.completed.items()}


def test_four_experts_queue_for_two_slots_and_equal_a_plain_loop(
    planned: Plan, dataset: PreparedDataset, store: ExpertStore, expected: dict[str, str]
) -> None:
    journal = Journal()
    outcome = run(planned, dataset, store, journal)
    assert digests(outcome) == expected
    assert not outcome.failed
    assert not outcome.stopped
    assert journal.count("queued") == journal.count("training") == journal.count("done") == 4
    training, most = set(), 0
    for key, state in journal.states:
        training = training | {key} if state == "training" else training - {key} if state == "done" else training
        most = max(most, len(training))
    assert most == 2
    assert len(set(journal.pids.values())) == 2  # a process that has imported everything goes on with the next
    longest = max(planned.jobs, key=lambda job: job.expected_macs).key
    assert next(key for key, state in journal.states if state == "starting") == longest
    images = [record.images_seen for record in _records(store, longest)]
    assert journal.images_seen[longest] == images  # every record was heard, once, in order


def _records(store: ExpertStore, key: str) -> list[TrainingRecord]:
    from workloads.training.records import read_records

    return read_records(store.path(key) / "records.jsonl")


def test_a_killed_expert_goes_on_from_its_checkpoint_and_ends_the_same(
    planned: Plan, dataset: PreparedDataset, store: ExpertStore, expected: dict[str, str]
) -> None:
    victims: list[str] = []

    def kill_once(key: str, pid: int, images_seen: int) -> None:
        if not victims and 128 <= images_seen < 1024:
            victims.append(key)
            os.kill(pid, signal.SIGKILL)

    journal = Journal(kill_once)
    outcome = run(planned, dataset, store, journal)
    assert len(victims) == 1
    assert (victims[0], "restarting") in journal.states
    assert [(event.key, event.cause, event.attempt) for event in journal.restarts] == [
        (victims[0], FailureKind.PROCESS_DIED, 2)
    ]
    assert all(images % 128 == 0 for images in journal.checkpoints[victims[0]])
    assert journal.checkpoints[victims[0]] == sorted(set(journal.checkpoints[victims[0]]))
    assert digests(outcome) == expected


DASHBOARD = Path(__file__).parents[2] / "clusters" / "grafana.json"


def test_a_stalled_expert_is_named_then_restarted_and_the_cluster_serves_what_it_cost(
    planned: Plan, dataset: PreparedDataset, store: ExpertStore, expected: dict[str, str]
) -> None:
    """Every panel's query names metrics that the endpoint of this node serves, with labels that they have."""
    victims: list[str] = []

    def stall_once(key: str, pid: int, images_seen: int) -> None:
        if not victims and images_seen < 1024:
            victims.append(key)
            os.kill(pid, signal.SIGSTOP)

    silent: list[ExpertEvent] = []
    listeners = [
        Journal(stall_once),
        lambda event: silent.append(event) if isinstance(event, events.NoSignOfLife) else None,
        ClusterMetrics("tiny-run", planned.jobs),
    ]
    execution = ExecutionConfig(watchdog_s=2, heartbeat_timeout_s=5)
    outcome = train_experts(planned.jobs, dataset.path, store, execution, listeners)
    assert digests(outcome) == expected
    assert set(victims) <= {event.key for event in silent}  # others too, where a first step takes long
    (node,) = ray.nodes()
    assert {event.node for event in silent if isinstance(event, events.NoSignOfLife)} == {node["NodeManagerAddress"]}

    served = scrape(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        r"^ray_rememe_experts\{.*state=\"done\".* 4\.0$",
    )
    assert value(served, "ray_rememe_experts", run="tiny-run", state="done") == 4.0
    assert value(served, "ray_rememe_images_seen", run="tiny-run", expert="expert_00") == 1024.0
    assert value(served, "ray_rememe_restarts_total", run="tiny-run", cause="not_answering") == 1.0
    lost_s = value(served, "ray_rememe_lost_seconds_total", run="tiny-run", cause="not_answering")
    assert lost_s > execution.watchdog_s
    assert 0.0 < value(served, "ray_rememe_goodput", run="tiny-run") < 1.0
    labels: dict[str, set[str]] = {}
    for sample in served:
        labels.setdefault(sample.name, set()).update(sample.labels)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len(panels) == 9
    for expression in [target["expr"] for panel in panels for target in panel["targets"]]:
        (name,) = re.findall(r"ray_\w+", expression)
        asked = set(re.findall(r"(\w+)=", expression)) | set(re.findall(r"by \((\w+)\)", expression))
        assert asked <= labels[name], expression


def scrape(url: str, awaited: str) -> list[Sample]:
    """What a node serves to Prometheus, as soon as a line of it matches: Ray hands metrics on now and then."""
    text = ""

    def is_served() -> bool:
        nonlocal text
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        return re.search(awaited, text, re.MULTILINE) is not None

    wait_until(is_served, lambda: sorted(set(re.findall(r"^ray_\w+", text, re.MULTILINE))), interval_s=0.5)
    return [one for family in text_string_to_metric_families(text) for one in family.samples]


def value(served: list[Sample], name: str, **labels: str) -> float:
    (found,) = [one.value for one in served if one.name == name and labels.items() <= one.labels.items()]
    return float(found)


def test_a_failed_expert_is_reported_and_later_trained_alone(
    pair: Plan, dataset: PreparedDataset, store: ExpertStore, expected_of_pair: dict[str, str]
) -> None:
    broken = pair.jobs[1]
    store.path(broken.key).write_text("in the way of the expert's directory")
    outcome = run(pair, dataset, store)
    assert outcome.failed.keys() == {broken.key}
    message = outcome.failed[broken.key]
    assert message.startswith("expert_01 failed after 1 attempt: ")
    assert "Traceback" not in message
    assert "\n" not in message
    assert digests(outcome) == {key: digest for key, digest in expected_of_pair.items() if key != broken.key}

    store.path(broken.key).unlink()
    journal = Journal()
    outcome = run(pair, dataset, store, journal)
    assert journal.count("reused") == 1
    assert [key for key, state in journal.states if state == "training"] == [broken.key]
    assert digests(outcome) == expected_of_pair


def test_an_expert_that_keeps_dying_is_given_up(
    pair: Plan, dataset: PreparedDataset, store: ExpertStore, expected_of_pair: dict[str, str]
) -> None:
    victim = pair.jobs[0].key

    def kill_always(key: str, pid: int, images_seen: int) -> None:
        if key == victim:
            os.kill(pid, signal.SIGKILL)

    class Eager(Journal):
        def __call__(self, event: ExpertEvent) -> None:
            super().__call__(event)
            if isinstance(event, events.Training) and event.key == victim:
                os.kill(self.pids[event.key], signal.SIGKILL)

    outcome = train_experts(pair.jobs, dataset.path, store, ExecutionConfig(max_attempts=2), [Eager(kill_always)])
    assert "failed after 2 attempts: its process died" in outcome.failed[victim]
    assert digests(outcome) == {key: digest for key, digest in expected_of_pair.items() if key != victim}


def test_ctrl_c_writes_checkpoints_and_the_next_run_continues(
    planned: Plan,
    dataset: PreparedDataset,
    store: ExpertStore,
    expected: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupted: list[str] = []

    def press_ctrl_c(key: str, pid: int, images_seen: int) -> None:
        if not interrupted and images_seen < planned.jobs[0].job.training.images:
            interrupted.append(key)
            os.kill(os.getpid(), signal.SIGINT)

    outcome = run(planned, dataset, store, Journal(press_ctrl_c))
    assert outcome.stopped
    assert not outcome.failed
    assert len(outcome.stopped) == len(set(outcome.stopped)) == 4 - len(outcome.completed)
    assert list(store.path(interrupted[0]).glob("checkpoints/*")) or interrupted[0] in outcome.completed
    damaged = max(store.root.glob("*/checkpoints/*/state.safetensors"))
    damage(damaged)
    assert digests(run(planned, dataset, store)) == expected
    # Where that was found out, nobody reads.
    assert f"checkpoint {damaged.parent} is damaged" in caplog.text


@pytest.mark.parametrize(("num_cpus", "num_threads"), [(2, 2), (0.5, 1)])
def test_the_cpus_of_an_actor_are_its_threads(
    planned: Plan, dataset: PreparedDataset, store: ExpertStore, num_cpus: float, num_threads: int
) -> None:
    training = planned.jobs[0].job.training.model_copy(update={"images": 32})
    short = planned.jobs[0].job.model_copy(update={"training": training})
    job = replace(planned.jobs[0], job=short, resources=Resources(num_cpus=num_cpus))
    options = {"num_cpus": num_cpus}
    actor = ExpertActor.options(**options).remote(store.site)
    ray.get(actor.train.remote(job, dataset.path))
    assert ray.get(actor.__ray_call__.remote(lambda _: torch.get_num_threads())) == num_threads
    ray.kill(actor)


def test_a_store_that_is_another_directory_elsewhere_is_named(
    planned: Plan, dataset: PreparedDataset, tmp_path: Path
) -> None:
    store = ExpertStore(tmp_path / "store")
    (tmp_path / "other").mkdir()
    actor = ExpertActor.remote(SharedSite(tmp_path / "other", store.identity))
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(actor.train.remote(planned.jobs[0], dataset.path))
    assert "set --runs-dir to a path all nodes share" in str(raised.value.cause)
    ray.kill(actor)

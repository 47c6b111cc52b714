"""Nodes that die, groups that shrink and grow with them, and who waits for what no node has: several raylets here."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.autoscaler.v2.schema import ResourceDemand
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from waiting import PATIENCE_S, wait_until

from orchestrator.execution.actor import ExpertActor
from orchestrator.execution.cluster import connect, with_resources
from orchestrator.execution.nodes import facts_of_nodes
from orchestrator.execution.processes import ExpertProcesses
from orchestrator.execution.supervisor import train_experts
from orchestrator.plan import events
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import PlannedJob, Request, make_plan
from orchestrator.plan.policies import ACCELERATOR, FailureKind
from orchestrator.runs.doctor import examine
from orchestrator.store.experts import ExpertStore
from workloads.config import ExecutionConfig, Resources, RunConfig
from workloads.data.prepared import PreparedDataset
from workloads.places import JobDir
from workloads.training.job import train_job
from workloads.training.records import read_records

pytestmark = pytest.mark.ray

NUM_IMAGES = 9_600
"""Some ten seconds of training: a node dies in the middle of it."""


"""Nodes tell the head what waits about once a second."""

OBJECT_STORE = {"object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that holds no expert, and the driver connected to it."""
    # What a dead node's silence costs is waited for in seconds, not in a minute.
    checks = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000}
    settings = {**checks, "health_check_failure_threshold": 5}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings, **OBJECT_STORE})
    try:
        with connect(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


def laid_out(nodes: Cluster, *num_cpus: int) -> list[Any]:
    """Nodes of so many CPUs, and no others, whatever a test before this one has left."""
    for node in list(nodes.worker_nodes):
        nodes.remove_node(node)
    return [nodes.add_node(num_cpus=count, **OBJECT_STORE) for count in num_cpus]


@pytest.fixture
def job(tiny_run: dict[str, Any], dataset: PreparedDataset) -> PlannedJob:
    """One expert, with a checkpoint every few hundred images."""
    training = tiny_run["training"] | {"images": NUM_IMAGES, "checkpoint_every_images": 640}
    raw = tiny_run | {"strategy": {"kind": "single"}, "training": training}
    return make_plan(RunConfig.model_validate(raw), dataset.spec(RunConfig.model_validate(raw).data)).jobs[0]


def test_every_node_is_looked_at_and_nothing_is_left_behind(nodes: Cluster, tmp_path: Path) -> None:
    """On one disk and with one installation all must be well; a directory that is gone meanwhile is not shared."""
    laid_out(nodes, 1)
    runs = tmp_path / "runs"
    found = examine(runs, nodes.address, store=(tmp_path / "store").as_uri())
    said = {subject: (is_ok, text) for is_ok, subject, text in found if subject != "devices"}
    assert [subject for subject, (is_ok, _) in said.items() if not is_ok] == []
    for subject in ("packages", "clocks", "gpus", "disks", "shared runs", "stores", "token"):
        assert said[subject][1] == "as they should be on 2 of 2 nodes"
    assert said["store"][1].endswith("and of two that write one name at once one is told")
    assert not runs.exists()
    assert not any((tmp_path / "store").iterdir())
    facts, silent = facts_of_nodes(["ray", "no-such-package"], runs, runs / "absent")
    assert silent == {}
    assert [(one.sees_probe, one.answers_probe, one.versions) for one in facts] == [
        (False, False, {"ray": ray.__version__, "no-such-package": ""})
    ] * 2


def test_a_lost_node_costs_no_attempt_and_changes_no_weight(
    nodes: Cluster, job: PlannedJob, dataset: PreparedDataset, store: ExpertStore, tmp_path: Path
) -> None:
    """With a single attempt: the only node is killed while one trains there and one waits for its place; another node
    is there, and both end the same."""
    (doomed,) = laid_out(nodes, 1)
    heard: list[ExpertEvent] = []

    def listen(event: ExpertEvent) -> None:
        heard.append(event)
        if isinstance(event, events.Checkpointed) and doomed in nodes.list_all_nodes():
            nodes.remove_node(doomed, allow_graceful=False)  # SIGKILL of its raylet
            nodes.add_node(num_cpus=1, **OBJECT_STORE)

    short = job.job.model_copy(update={"seed": 1, "training": job.job.training.model_copy(update={"images": 640})})
    both = [job, replace(job, job=short)]
    outcome = train_experts(both, dataset.path, store, ExecutionConfig(max_attempts=1), [listen])
    assert outcome.failed == {}
    restarts = [event for event in heard if isinstance(event, events.Restarting)]
    assert {event.key for event in restarts} == {one.key for one in both}
    assert {(event.cause, event.attempt) for event in restarts} == {(FailureKind.NODE_LOST, 1)}
    seen = [event.images_seen for event in heard if isinstance(event, events.Progressed) and event.key == job.key]
    assert seen[-1] == NUM_IMAGES
    num_threads = torch.get_num_threads()
    for one in both:
        expected = train_job(one.job, dataset.path, tmp_path / one.key, num_threads=1)
        assert outcome.completed[one.key].weights_sha256 == expected.weights_sha256
    torch.set_num_threads(num_threads)


def test_a_group_goes_on_elsewhere_when_it_loses_a_node(
    nodes: Cluster, job: PlannedJob, dataset: PreparedDataset, tmp_path: Path
) -> None:
    """With a single attempt, and the weights of a group that lost nothing."""
    training = job.job.training.model_copy(update={"images": 3840, "checkpoint_every_images": 320})
    alone = replace(job, job=job.job.model_copy(update={"training": training}))
    group = replace(alone, num_workers=2, worker_counts=(2,), placement="SPREAD")
    _, doomed = laid_out(nodes, 1, 1)
    restarts: list[ExpertEvent] = []

    def listen(event: ExpertEvent) -> None:
        if isinstance(event, events.Checkpointed) and doomed in nodes.list_all_nodes():
            nodes.remove_node(doomed, allow_graceful=False)
            nodes.add_node(num_cpus=1, **OBJECT_STORE)
        if isinstance(event, events.Restarting):
            restarts.append(event)

    found = []
    for name in ("disturbed", "undisturbed"):
        store = ExpertStore(tmp_path / name)
        outcome = train_experts([group], dataset.path, store, ExecutionConfig(max_attempts=1), [listen])
        assert outcome.failed == {}
        found.append(outcome.completed[group.key].weights_sha256)
    assert restarts == [events.Restarting(group.key, FailureKind.NODE_LOST, 1)]
    assert found[0] == found[1]


def test_a_preempted_node_is_left_with_a_checkpoint(
    nodes: Cluster, job: PlannedJob, dataset: PreparedDataset, store: ExpertStore
) -> None:
    """No checkpoint is due in the whole training, so all before the notice would be lost without one."""
    training = job.job.training.model_copy(
        update={"checkpoint_every_images": 10 * NUM_IMAGES, "log_every_images": job.job.training.batch_size}
    )
    lonely = replace(job, job=job.job.model_copy(update={"training": training}))
    folder, twice = JobDir(store.path(lonely.key)), []
    noticed_s = left_s = 0.0
    (doomed,) = laid_out(nodes, 1)

    def listen(event: ExpertEvent) -> None:
        nonlocal noticed_s, left_s
        if isinstance(event, events.Progressed) and not noticed_s:
            noticed_s = time.monotonic()
            preempt(doomed.node_id)
            nodes.add_node(num_cpus=1, **OBJECT_STORE)
        if isinstance(event, events.Restarting):
            assert event == events.Restarting(lonely.key, FailureKind.PREEMPTED, 1)
            left_s = time.monotonic()
            twice.append(read_records(folder.records)[-1].images_seen - (folder.checkpointed_images() or 0))

    outcome = train_experts([lonely], dataset.path, store, ExecutionConfig(max_attempts=1), [listen])
    nodes.remove_node(doomed)  # its raylet has ended by itself
    assert outcome.failed == {}
    assert outcome.completed[job.key].images_seen == NUM_IMAGES
    print(f"left {left_s - noticed_s:.1f} s after the notice, {twice} images trained twice")
    assert len(twice) == 1
    assert 0 <= twice[0] <= 0.02 * NUM_IMAGES


def preempt(node_id: str) -> None:
    """What a cloud's notice, or SIGTERM to `ray start --block`, comes to: the node has half a minute."""
    client, reason = ray._private.worker.global_worker.gcs_client, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why_not = client.drain_node(node_id, reason, "spot", int((time.time() + 30) * 1000))
    assert accepted, why_not


def test_a_group_of_four_loses_a_node_goes_on_with_two_and_grows_back(
    nodes: Cluster,
    job: PlannedJob,
    dataset: PreparedDataset,
    store: ExpertStore,
    tmp_path: Path,
) -> None:
    """Every image counts once, and the loss curve stays far inside what another seed makes of it."""
    doomed, _ = laid_out(nodes, 2, 2)
    training = job.job.training.model_copy(update={"images": 1920, "checkpoint_every_images": 192})
    job = replace(job, job=job.job.model_copy(update={"training": training}))
    group, folder = replace(job, num_workers=4, worker_counts=(4, 2)), JobDir(store.path(job.key))
    workers: list[int | None] = []
    heard: list[int] = []
    """Images of records since the node was lost."""
    left: list[tuple[FailureKind, int, int]] = []
    """Why, with which checkpoint, and after which record a group ended."""

    def listen(event: ExpertEvent) -> None:
        match event:
            case events.Starting(attempt=1, num_workers=num_workers):
                workers.append(num_workers)
                if num_workers == 2:
                    nodes.add_node(num_cpus=2, **OBJECT_STORE)
            case events.Progressed(records=records) if left:
                heard.extend(record.images_seen for record in records)
            case events.Checkpointed() if doomed in nodes.list_all_nodes():
                nodes.remove_node(doomed, allow_graceful=False)
            case events.Restarting(cause=cause):
                left.append((cause, folder.checkpointed_images() or 0, read_records(folder.records)[-1].images_seen))

    execution = ExecutionConfig(max_attempts=1, grow_every_s=1)
    outcome = train_experts([group], dataset.path, store, execution, [listen])
    assert outcome.failed == {}
    assert workers == [4, 2, 4]
    (lost, saved, _), (grown, saved_by_two, trained_by_two) = left
    assert (lost, grown) == (FailureKind.NODE_LOST, FailureKind.OUTGROWN)
    assert heard[0] > saved  # nothing before the last checkpoint was done again
    assert heard == sorted(set(heard))  # and nothing twice for growing
    assert saved < saved_by_two == trained_by_two
    assert outcome.completed[job.key].images_seen == training.images
    curves = [read_records(folder.records)]
    for seed in (0, 1):
        alone = tmp_path / str(seed)
        train_job(job.job.model_copy(update={"seed": seed}), dataset.path, alone)
        curves.append(read_records(JobDir(alone).records))
    assert [record.images_seen for record in curves[0]] == list(range(64, training.images + 1, 64))
    elastic, same, other = ([record.loss for record in curve] for curve in curves)
    off = [abs(a - b) for a, b in zip(elastic, same, strict=True)]
    spread = [abs(a - b) for a, b in zip(other, same, strict=True)]
    print(f"{saved_by_two - saved} images by two; off by at most {max(off):.2g}, another seed by {max(spread):.2g}")
    assert max(off) < 0.1 * max(spread)
    assert sum(off) < 0.01 * sum(spread)


def demand(nodes: Cluster) -> tuple[int, int]:
    """What Ray tells an autoscaler: how many actors wait for the resource `later`, and how many places of groups."""
    demands = get_cluster_status(nodes.address).resource_demands

    def waiting(kind: Sequence[ResourceDemand]) -> int:
        shapes = [shape for one in kind for shape in one.bundles_by_count if "later" in shape.bundle]
        assert all(shape.bundle == {"CPU": 1, "later": 1} for shape in shapes)
        return sum(shape.count for shape in shapes)

    return waiting(demands.ray_task_actor_demand), waiting(demands.placement_group_demand)


def test_an_autoscaler_sees_who_queues(
    nodes: Cluster, job: PlannedJob, dataset: PreparedDataset, store: ExpertStore
) -> None:
    later = replace(job, resources=Resources(num_cpus=1, custom={"later": 1}))
    deadline_s, seen = time.monotonic() + PATIENCE_S, (0, 0)

    def is_seen() -> bool:
        nonlocal seen
        seen = demand(nodes)
        return seen == (1, 0) or time.monotonic() > deadline_s

    outcome = train_experts([later], dataset.path, store, ExecutionConfig(), should_stop=is_seen)
    assert outcome.stopped == [later.key]
    assert seen == (1, 0)


def test_an_autoscaler_sees_the_places_that_a_group_lacks(
    nodes: Cluster, dataset: PreparedDataset, store: ExpertStore
) -> None:
    processes = ExpertProcesses(store.site, dataset.path)
    lacking = {"a-key": Request(Resources(num_cpus=1, custom={"later": 1}), 2)}
    for wanted, expected in ((lacking, (0, 2)), ({}, (0, 0))):

        def is_told(wanted: dict[str, Request] = wanted, expected: tuple[int, int] = expected) -> bool:
            assert processes.make_room(wanted) == []
            return demand(nodes) == expected

        wait_until(is_told, lambda: demand(nodes), interval_s=0.2)


@pytest.fixture(scope="module")
def special(nodes: Cluster) -> dict[str, Any]:
    """A node with a label, and one with a kind of GPU (Ray is told so; nothing is computed on it)."""
    zone = nodes.add_node(num_cpus=1, labels={"zone": "eu"}, **OBJECT_STORE)
    gpu = nodes.add_node(num_cpus=1, num_gpus=1, resources={f"{ACCELERATOR}H100": 1}, **OBJECT_STORE)
    return {"zone": zone, "gpu": gpu}


def test_experts_land_on_the_nodes_they_ask_for(special: dict[str, Any], store: ExpertStore) -> None:
    asked = {
        "zone": Resources(label_selector={"zone": "in(eu, us)"}),
        "gpu": Resources(num_gpus=0.5, accelerator_type="H100", label_selector={"zone": "!eu"}),
    }
    actors = {name: with_resources(ExpertActor, resources).remote(store.site) for name, resources in asked.items()}
    reports = ray.get([actor.poll.remote("k", 0, 0) for actor in actors.values()])
    found = {name: report.node_id for name, report in zip(actors, reports, strict=True)}
    assert found == {name: node.node_id for name, node in special.items()}


def test_who_waits_for_what_no_node_has_says_so_and_is_given_up(
    special: dict[str, Any], job: PlannedJob, dataset: PreparedDataset, store: ExpertStore
) -> None:
    expected = [
        (Resources(label_selector={"zone": "us"}), "asks for zone=us, but the nodes offer zone=eu"),
        (Resources(num_gpus=1, accelerator_type="A100"), "accelerator_type is A100, but the nodes offer H100"),
        (Resources(custom={"highmem": 1}), "custom.highmem is 1, but no node has more than 0"),
    ]
    wanting = []
    for seed, (resources, _) in enumerate(expected):
        wanting.append(replace(job, job=job.job.model_copy(update={"seed": seed}), resources=resources))
    started_s, told = time.monotonic(), []

    def listen(event: ExpertEvent) -> None:
        if isinstance(event, events.WaitingFor):
            told.append((event.key, event.reason))
            assert time.monotonic() - started_s < 60

    outcome = train_experts(wanting, dataset.path, store, ExecutionConfig(wait_timeout_s=6), [listen])
    assert len(told) == len(expected)  # once each, though it is looked at again and again
    for one, (_, reason) in zip(wanting, expected, strict=True):
        assert dict(told)[one.key].endswith(reason)
        assert f"{reason}, for 6 s (execution.wait_timeout_s)" in outcome.failed[one.key]


def test_a_cluster_without_nodes_is_an_error_not_a_wait(  # the last one: it leaves no cluster behind
    nodes: Cluster, job: PlannedJob, dataset: PreparedDataset, store: ExpertStore
) -> None:
    def listen(event: ExpertEvent) -> None:
        if isinstance(event, events.Queued):
            for node in nodes.list_all_nodes():
                node.kill_raylet()

    started_s = time.monotonic()
    with pytest.raises(ClusterError, match="the last node of the cluster is gone"):
        train_experts([job], dataset.path, store, ExecutionConfig(), [listen])
    assert time.monotonic() - started_s < 60

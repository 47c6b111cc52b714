#!/usr/bin/env python3
"""What the driver takes for a hundred experts that run at once, on Ray's own cluster of several raylets on one machine.

    python benchmarks/hundred_actors.py

What is real: make_plan(), train_experts(), all of orchestrator/execution, and Ray: its nodes, its placement, a process
for each actor, its answers and records. What is not: training. In its place an actor waits a second per record, so that
its process does without torch, of which a hundred would not fit.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster
from thousand_experts import peak_bytes, thousand_jobs

from orchestrator.execution import processes, supervisor
from orchestrator.execution.actor import ActorReport
from orchestrator.execution.cluster import connect
from orchestrator.execution.processes import ExpertProcesses
from orchestrator.plan import events
from orchestrator.plan.events import ExpertEvent
from orchestrator.plan.jobs import PlannedJob
from orchestrator.store.experts import ExpertStore
from workloads.config import ExecutionConfig, Resources
from workloads.training.records import TrainingRecord
from workloads.training.result import JobResult

OBJECT_STORE_BYTES = 100 * 2**20
GO = "go"
"""A file that is there once all run: then all begin, and the driver hears of all at once."""


class Waiter:
    """ExpertActor as the supervisor sees it, without training."""

    num_seconds = 60

    def __init__(self, site: Any) -> None:  # noqa: ARG002
        self._records: dict[str, list[TrainingRecord]] = {}

    def train(self, job: PlannedJob, data: Any, rank: int, address: Any) -> Any:  # noqa: ARG002
        records, images = self._records.setdefault(job.key, []), job.job.training.images
        while not (data / GO).exists():
            time.sleep(1)
        for second in range(1, self.num_seconds + 1):
            time.sleep(1)
            seen = images * second // self.num_seconds
            records.append(TrainingRecord(seen, 1 / second, images / self.num_seconds, 1e-4, 0.0, time.time()))
        return JobResult(job.key, images, 1 / self.num_seconds, self.num_seconds, 0, "", "", ()), records, []

    @ray.method(concurrency_group="control")
    def poll(self, key: str, num_known: int, _: int) -> ActorReport:
        records, context = self._records.get(key, []), ray.get_runtime_context()
        return ActorReport(os.getpid(), context.get_node_id(), "127.0.0.1", records[num_known:], 0, len(records))


class Journal:
    """Counts looks and events, and what the driver has used when all first ran and when the first was done."""

    def __init__(self, num_actors: int, place: Path) -> None:
        self.num_looks, self.num_records, self._num_actors = 0, 0, num_actors
        self.heard: Counter[type] = Counter()
        self._place = place
        self.marks: dict[str, tuple[float, float, int]] = {}

    def mark(self, name: str) -> None:
        self.marks.setdefault(name, (time.monotonic(), time.process_time(), self.num_looks))

    def __call__(self, event: ExpertEvent) -> None:
        self.heard[type(event)] += 1
        if isinstance(event, events.Progressed):
            self.num_records += len(event.records)
        if self.heard[events.Training] == self._num_actors:
            self.mark("all run")
            (self._place / GO).touch()
        if isinstance(event, events.Done):
            self.mark("one is done")

    def look(self, poll: Any) -> Any:
        """poll(), counted."""

        def counted(*arguments: Any) -> Any:
            self.num_looks += 1
            return poll(*arguments)

        return counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=60, help="that each expert takes")
    options = parser.parse_args()
    Waiter.num_seconds = options.seconds
    jobs = [replace(job, resources=Resources(num_cpus=1)) for job in thousand_jobs(options.actors, 20)]
    actor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})(Waiter)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES})
    with ExitStack() as stack:
        stack.callback(cluster.shutdown)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        journal = Journal(options.actors, place)
        for number in range(options.nodes):
            places = len(range(number, options.actors, options.nodes))
            cluster.add_node(num_cpus=places, object_store_memory=OBJECT_STORE_BYTES)
        stack.enter_context(connect(cluster.address))
        stack.enter_context(patch.object(processes, "ExpertActor", actor))
        stack.enter_context(patch.object(ExpertProcesses, "poll", journal.look(ExpertProcesses.poll)))
        before_bytes = peak_bytes()
        journal.mark("begun")
        outcome = supervisor.train_experts(jobs, place, ExpertStore(place), ExecutionConfig(), [journal])
        journal.mark("all are done")
    assert len(outcome.trained) == options.actors, outcome
    print(json.dumps(report(journal, options.nodes, peak_bytes() - before_bytes), indent=2))
    return 0


def report(journal: Journal, num_nodes: int, grown_bytes: int) -> dict[str, Any]:
    """Between the moments when all ran and when the first was done."""
    (begun_s, *_), (from_s, from_cpu_s, from_looks) = journal.marks["begun"], journal.marks["all run"]
    to_s, to_cpu_s, to_looks = journal.marks["one is done"]
    num_looks, cpu_s = to_looks - from_looks, to_cpu_s - from_cpu_s
    return {
        "actors": journal.heard[events.Training],
        "nodes": num_nodes,
        "until_all_run_s": round(from_s - begun_s, 1),
        "watched_s": round(to_s - from_s, 1),
        "looks_per_s": round(num_looks / (to_s - from_s), 2),
        "driver_cpu_ms_per_look": round(1000 * cpu_s / num_looks, 1),
        "driver_cpu_share": round(cpu_s / (to_s - from_s), 3),
        "driver_grown_mb": round(grown_bytes / 1e6, 1),
        "records_heard": journal.num_records,
        "restarts": journal.heard[events.Restarting],
        "from_first_to_last_end_s": round(journal.marks["all are done"][0] - to_s, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python3
"""1,000 experts of 20 sizes on 256 GPUs that come and go: the project's own planner and supervisor in simulated time.

    python benchmarks/thousand_experts.py

What is real: make_plan(), train_experts() and all that decides in it. What is simulated: the clock, the store, and Ray,
which places the experts, loses their nodes and adds new ones. Half of the nodes are on demand and fail at 6.5 in 1,000
node-days (Meta's RSC-1, arXiv:2410.21680); half are spot and are taken away at 10 % an hour (the lowest rate of Bamboo,
arXiv:2204.12013), with no use made of a notice. An expert takes its multiply-adds over a GPU's speed, give or take 15 %
by size, which the planner does not know.

makespan_ratio is over max(all work / 256 GPUs, longest expert), as if all nodes were there from the first second to the
last; goodput is training that was kept over the GPU time that experts held (starts, checkpoints and repeated training
are the rest).
"""

import argparse
import heapq
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.exceptions import ActorUnavailableError

from orchestrator.execution import supervisor
from orchestrator.execution.processes import Ending, ExpertProcess, Heard, Member
from orchestrator.plan.jobs import PlannedJob, make_plan
from orchestrator.plan.policies import as_ray_resources
from workloads.config import DataSpec, ExecutionConfig, RunConfig
from workloads.config.load import load_config

MAX_MAKESPAN_RATIO, MIN_GOODPUT = 1.05, 0.97
LOOK_S = 60.0
"""The simulated clock jumps to the next thing that happens, but no farther, as there are pauses it does not know of."""


@dataclass(frozen=True)
class Scenario:
    """A cluster and what befalls it; the default is calm."""

    gpus_per_node: int = 8
    num_steady: int = 1
    """Nodes that are there from the beginning."""

    num_spot: int = 0
    """Nodes an autoscaler adds while experts wait for a place."""

    steady_losses_per_h: float = 0.0
    spot_losses_per_h: float = 0.0
    launch_s: float = 0.0
    """From demand, or a loss, to the new node."""

    idle_s: float = 300.0
    """After which the autoscaler ends a spot node."""

    verdict_s: float = 12.0
    """From the death of a node to Ray's knowing."""

    start_s: float = 0.0
    """From a place to the first step."""

    checkpoint_every_s: float = float("inf")
    checkpoint_s: float = 0.0


REALISTIC = Scenario(
    num_steady=16,
    num_spot=16,
    steady_losses_per_h=6.5 / 1000 / 24,
    spot_losses_per_h=0.1,
    launch_s=240,
    start_s=30,
    checkpoint_every_s=600,
    checkpoint_s=2,
)


@dataclass
class Node:
    """A simulated node."""

    is_spot: bool
    total: dict[str, float]
    free: dict[str, float]
    idle_since_s: float = 0.0


@dataclass
class Course:
    """An expert between its submission and its end."""

    process: ExpertProcess
    job: PlannedJob
    node_id: str = ""
    since_s: float = 0.0
    has_spoken: bool = False
    ending: Ending | None = None


@dataclass
class World:
    """Ray, its nodes and the store, in simulated time; stands where ExpertProcesses, ExpertStore and time stand."""

    scenario: Scenario
    work_s: Mapping[str, float]
    """Seconds of training each expert needs."""

    seed: int = 0
    now_s: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    courses: dict[str, Course] = field(default_factory=dict)
    free: list[Course] = field(default_factory=list)
    """Whose actors are done, and still hold their places."""

    saved_s: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    held_s: float = 0.0
    """GPU seconds that experts held."""

    num_losses: int = 0
    num_looks: int = 0
    num_launching: int = 0
    site: None = None
    """No job lies anywhere."""

    def __post_init__(self) -> None:
        self.rng, self.events, self.count = random.Random(self.seed), [], 0
        for _ in range(self.scenario.num_steady):
            self._join(is_spot=False)

    # The clock.

    def monotonic(self) -> float:
        return self.now_s

    def at(self, time_s: float, act: Callable[..., None], *arguments: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (time_s, self.count, act, arguments))

    # Nodes.

    def _join(self, *, is_spot: bool) -> None:
        self.count += 1
        node_id = f"node-{self.count}"
        total = {"CPU": 8.0 * self.scenario.gpus_per_node, "GPU": float(self.scenario.gpus_per_node)}
        self.nodes[node_id] = Node(is_spot, total, dict(total), self.now_s)
        self.num_launching -= is_spot
        rate = self.scenario.spot_losses_per_h if is_spot else self.scenario.steady_losses_per_h
        if rate:
            self.at(self.now_s + self.rng.expovariate(rate / 3600), self._lose, node_id)

    def _lose(self, node_id: str) -> None:
        node = self.nodes.pop(node_id, None)
        if node is None:
            return  # ended for idleness before
        self.num_losses += 1
        self.at(self.now_s + self.scenario.verdict_s, self.dead.add, node_id)
        if not node.is_spot:
            self.at(self.now_s + self.scenario.launch_s, lambda: self._join(is_spot=False))
        for key, course in self.courses.items():
            if course.node_id == node_id and course.ending is None:
                elapsed_s = self.now_s - course.since_s
                self.saved_s[key] += self._saved_after(elapsed_s - self.scenario.start_s)
                self.held_s += elapsed_s * course.job.resources.num_gpus
                course.ending = Ending(
                    course.process, error=ActorUnavailableError("lost", None), member=course.process.members[0]
                )

    def _scale(self) -> None:
        """As an autoscaler does: enough nodes for those that wait for a place, and none that is long idle."""
        waiting = sum(course.job.resources.num_gpus for course in self.courses.values() if not course.node_id)
        wanted = -int(-waiting // self.scenario.gpus_per_node)
        num_spot = sum(node.is_spot for node in self.nodes.values())
        for _ in range(min(wanted, self.scenario.num_spot - num_spot) - self.num_launching):
            self.num_launching += 1
            self.at(self.now_s + self.scenario.launch_s, lambda: self._join(is_spot=True))
        for node_id, node in list(self.nodes.items()):
            if node.is_spot and node.free == node.total and self.now_s - node.idle_since_s > self.scenario.idle_s:
                del self.nodes[node_id]

    def alive_nodes(self) -> list[dict[str, float]]:
        return [node.total for node in self.nodes.values()]

    def dead_nodes(self) -> set[str]:
        return self.dead

    def on_nodes(self, node_ids: Set[str]) -> list[str]:
        return [key for key, course in self.courses.items() if course.node_id in node_ids]

    # Training.

    def _saved_after(self, elapsed_s: float) -> float:
        every_s, pause_s = self.scenario.checkpoint_every_s, self.scenario.checkpoint_s
        return 0.0 if elapsed_s <= 0 or every_s == float("inf") else elapsed_s // (every_s + pause_s) * every_s

    def _place(self) -> None:
        for course in self.courses.values():
            if not course.node_id:
                wanted = as_ray_resources(course.job.resources)
                for node_id, node in self.nodes.items():
                    if all(node.free[name] >= amount for name, amount in wanted.items()):
                        self._begin(course, node_id)
                        break

    def _begin(self, course: Course, node_id: str, start_s: float | None = None) -> None:
        start_s = self.scenario.start_s if start_s is None else start_s
        free, key = self.nodes[node_id].free, course.job.key
        for name, amount in as_ray_resources(course.job.resources).items():
            free[name] -= amount
        course.node_id, course.since_s = node_id, self.now_s
        left_s = self.work_s[key] - self.saved_s.setdefault(key, 0.0)
        pauses_s = left_s // self.scenario.checkpoint_every_s * self.scenario.checkpoint_s
        self.at(self.now_s + start_s + left_s + pauses_s, self._finish, course)

    def _finish(self, course: Course) -> None:
        if course.ending is None:
            self.held_s += (self.now_s - course.since_s) * course.job.resources.num_gpus
            course.ending = Ending(course.process, result=SimpleNamespace(), records=())  # type: ignore[arg-type]
            self.finished.add(course.job.key)
            self.free.append(course)

    def _vacate(self, course: Course) -> None:
        if (node := self.nodes.get(course.node_id)) is not None:
            node.idle_since_s = self.now_s
            for name, amount in as_ray_resources(course.job.resources).items():
                node.free[name] += amount

    # What ExpertProcesses does.

    def __bool__(self) -> bool:
        return bool(self.courses)

    def start(self, job: PlannedJob) -> bool:
        self.courses[job.key] = Course(ExpertProcess(job, (Member(None, None),)), job)
        return self.hand_over(job.key)

    def hand_over(self, key: str) -> bool:
        course = self.courses[key]
        for course_before in self.free:
            if course_before.job.resources == course.job.resources:
                self.free.remove(course_before)
                self._vacate(course_before)
                if course_before.node_id not in self.nodes:
                    return False  # its node was lost meanwhile
                self._begin(course, course_before.node_id, start_s=0.0)
                return True
        return False

    def end_free(self) -> None:
        while self.free:
            self._vacate(self.free.pop())
        self._place()
        self._scale()

    def make_room(self, lacking: Mapping[str, Any]) -> list[str]:
        return list(lacking)  # of groups, and there are none

    def kill(self, key: str) -> None:
        raise AssertionError(f"nothing here falls silent or waits in vain, but {key} was killed")

    def close(self) -> None:
        self.courses.clear()

    def collect(self, timeout_s: float) -> Iterator[tuple[str, Ending]]:  # noqa: ARG002
        self.num_looks += 1
        self.now_s += LOOK_S
        if self.events:
            self.now_s = min(self.now_s, self.events[0][0])
        while self.events and self.events[0][0] <= self.now_s:
            _, _, act, arguments = heapq.heappop(self.events)
            act(*arguments)
        for key in [key for key, course in self.courses.items() if course.ending is not None]:
            ending = self.courses.pop(key).ending
            assert ending is not None
            yield key, ending

    def poll(self, timeout_s: float) -> tuple[list[tuple[str, Heard]], list[str]]:  # noqa: ARG002
        heard = []
        for key, course in self.courses.items():
            if course.node_id and not course.has_spoken:
                course.has_spoken, course.process.members[0].node_id = True, course.node_id
                report = SimpleNamespace(
                    pid=1, records=[], checkpoint_images=0, num_steps=0, remarks=[], node=course.node_id
                )
                heard.append((key, Heard(course.process, report, is_first=True)))  # type: ignore[arg-type]
        return heard, []

    # What the store does.

    def completed(self, key: str) -> None:  # noqa: ARG002
        return

    def claim(self, key: str) -> Any:  # noqa: ARG002
        return SimpleNamespace(release=lambda: None)

    def publish(self, key: str) -> None:
        assert key in self.finished


def simulate(jobs: Sequence[PlannedJob], world: World) -> dict[str, float]:
    """Train the jobs in that world; what it took. Every job has ended well."""
    num_events = 0

    def count(event: Any) -> None:  # noqa: ARG001
        nonlocal num_events
        num_events += 1

    started_s = time.process_time()
    with (
        patch.object(supervisor, "time", world),
        patch.object(supervisor, "require_nodes", lambda: None),
        patch.object(supervisor, "staying_nodes", world.alive_nodes),
        patch.object(supervisor, "leaving_nodes", set),
        patch.object(supervisor, "dead_nodes", world.dead_nodes),
        patch.object(supervisor, "died_with_node", lambda _: False),  # dead_nodes has them
        patch.object(supervisor, "ExpertProcesses", lambda *_: world),
    ):
        outcome = supervisor.train_experts(jobs, Path(), world, ExecutionConfig(), [count])  # type: ignore[arg-type]
    cpu_s = time.process_time() - started_s
    assert outcome.trained == set(world.work_s), outcome
    return {
        "makespan_s": world.now_s,
        "goodput": sum(world.work_s[job.key] * job.resources.num_gpus for job in jobs) / world.held_s,
        "node_losses": world.num_losses,
        "looks": world.num_looks,
        "decisions": num_events,
        "cpu_s": cpu_s,
    }


def lower_bound_s(work_s: Sequence[float], num_slots: int) -> float:
    """No schedule of jobs with one slot each is shorter, whatever it knows."""
    return max(sum(work_s) / num_slots, *work_s)


def thousand_jobs(num_experts: int, num_sizes: int) -> Sequence[PlannedJob]:
    """MEME experts for one GPU each, of so many widths: the largest takes eleven times the smallest's work."""
    experts = [
        {"specialisation": 0.5, "model": {"channels": 16 * (8 + index % num_sizes)}} for index in range(num_experts)
    ]
    raw = load_config("demo-meme").model_dump(mode="json") | {
        "strategy": {"kind": "meme", "experts": experts},
        "execution": {"resources": {"num_cpus": 4, "num_gpus": 1}},
    }
    data = DataSpec(fingerprint="f" * 64, channels=3, image_size=20, num_classes=10)
    return make_plan(RunConfig.model_validate(raw), data).jobs


FEW = ((4, 2), (16, 4), (64, 8))
"""Experts of as many sizes, and the GPUs of the one node that holds them."""


def few_experts(mean_s: float, seed: int) -> dict[str, float]:
    """makespan_ratio of each, in a calm world, as a median of 21 draws of what the planner does not know."""
    ratios = {}
    for num_experts, num_gpus in FEW:
        jobs, found = thousand_jobs(num_experts, num_experts), []
        for draw in range(21):
            work_s = work_of(jobs, mean_s, random.Random(f"{seed} {num_experts} {draw}"))
            world = World(Scenario(gpus_per_node=num_gpus), work_s, seed)
            found.append(simulate(jobs, world)["makespan_s"] / lower_bound_s(list(work_s.values()), num_gpus))
        ratios[f"{num_experts} on {num_gpus}"] = round(statistics.median(found), 4)
    return ratios


def work_of(jobs: Sequence[PlannedJob], mean_s: float, rng: random.Random) -> dict[str, float]:
    """Seconds that each expert takes: its multiply-adds, give or take 15 % by size."""
    error = {macs: rng.uniform(0.85, 1.15) for macs in sorted({job.macs for job in jobs})}
    cost = {job.key: job.expected_macs * error[job.macs] for job in jobs}
    second = sum(cost.values()) / len(jobs) / mean_s
    return {key: value / second for key, value in cost.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--mean-hours", type=float, default=6.0, help="of training an expert")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    thousand_jobs(1, 1)  # imports lazily; that is not planning
    started_s = time.perf_counter()
    jobs = thousand_jobs(options.experts, options.sizes)
    plan_s = time.perf_counter() - started_s
    work_s = work_of(jobs, 3600 * options.mean_hours, random.Random(options.seed))
    before_bytes = peak_bytes()
    found = simulate(jobs, World(REALISTIC, work_s, options.seed))
    num_gpus = (REALISTIC.num_steady + REALISTIC.num_spot) * REALISTIC.gpus_per_node
    report = {
        "experts": len(jobs),
        "sizes": len({job.macs for job in jobs}),
        "gpus": num_gpus,
        "makespan_h": round(found["makespan_s"] / 3600, 2),
        "makespan_ratio": round(found["makespan_s"] / lower_bound_s(list(work_s.values()), num_gpus), 4),
        "goodput": round(found["goodput"], 4),
        "node_losses": found["node_losses"],
        "plan_s": round(plan_s, 2),
        "driver_cpu_s": round(found["cpu_s"], 2),
        "driver_ms_per_look": round(1000 * found["cpu_s"] / found["looks"], 2),
        "decisions_per_cpu_s": round(found["decisions"] / found["cpu_s"]),
        "driver_grown_mb": round((peak_bytes() - before_bytes) / 1e6, 1),
        "makespan_ratio_of_few": few_experts(3600 * options.mean_hours, options.seed),
        "scenario": asdict(REALISTIC),
        "seed": options.seed,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["makespan_ratio"] <= MAX_MAKESPAN_RATIO and report["goodput"] >= MIN_GOODPUT else 1


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())

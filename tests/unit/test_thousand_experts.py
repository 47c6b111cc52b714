"""The supervisor in simulated time (benchmarks/thousand_experts.py) against brute force, and what losses may cost."""

import importlib.util
import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.jobs import PlannedJob, make_plan
from workloads.config import DataSpec, Resources, RunConfig

FILE = Path(__file__).parents[2] / "benchmarks" / "thousand_experts.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("thousand_experts", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(tiny_run: dict[str, Any]) -> PlannedJob:
    data = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)
    (planned,) = make_plan(RunConfig.model_validate(tiny_run | {"strategy": {"kind": "single"}}), data).jobs
    return replace(planned, resources=Resources(num_cpus=1, num_gpus=1))


def jobs_of(job: PlannedJob, lengths: list[int]) -> list[PlannedJob]:
    """One for each length, in seconds; they differ in the seed."""
    return [
        replace(job, job=job.job.model_copy(update={"seed": number}), macs=length)
        for number, length in enumerate(lengths)
    ]


def best_s(lengths: list[int], num_slots: int) -> int:
    """The shortest schedule of all there are."""
    loads = (
        [sum(length for length, slot in zip(lengths, slots, strict=True) if slot == one) for one in range(num_slots)]
        for slots in itertools.product(range(num_slots), repeat=len(lengths))
    )
    return min(max(load) for load in loads)


@pytest.mark.parametrize("seed", range(6))
def test_calm_nodes_come_close_to_the_best_schedule(simulation: Any, job: PlannedJob, seed: int) -> None:
    """Longest first is within 4/3 - 1/(3 slots) of the optimum (Graham 1969, SIAM J. Appl. Math. 17)."""
    lengths = [random.Random(seed).randrange(100, 1000) for _ in range(7)]
    jobs = jobs_of(job, lengths)
    world = simulation.World(
        simulation.Scenario(gpus_per_node=3), {one.key: length for one, length in zip(jobs, lengths, strict=True)}
    )
    found = simulation.simulate(jobs, world)
    optimum_s = best_s(lengths, 3)
    assert simulation.lower_bound_s(lengths, 3) <= optimum_s <= found["makespan_s"]
    assert found["makespan_s"] <= (4 / 3 - 1 / 9) * optimum_s
    assert found["goodput"] == pytest.approx(1.0)


def test_a_lost_node_costs_what_was_not_saved_and_the_new_start(simulation: Any, job: PlannedJob) -> None:
    """One expert, two nodes, its own lost after 250 s of training: 50 s are trained again, and it starts twice."""
    (only,) = jobs_of(job, [1000])
    scenario = simulation.Scenario(gpus_per_node=1, num_steady=2, start_s=20, checkpoint_every_s=100)
    world = simulation.World(scenario, {only.key: 1000.0})
    world.at(270.0, lambda: world._lose(next(iter(world.nodes))))
    found = simulation.simulate([only], world)
    assert found["goodput"] == pytest.approx(1000 / (1000 + 50 + 2 * 20))
    assert found["makespan_s"] == pytest.approx(270 + scenario.verdict_s + 20 + 800, abs=1)


def test_experts_of_many_sizes_on_nodes_that_come_and_go_all_end(simulation: Any, job: PlannedJob) -> None:
    lengths = [3600 * (1 + number % 5) for number in range(60)]
    jobs = jobs_of(job, lengths)
    scenario = replace(simulation.REALISTIC, num_steady=1, num_spot=1, spot_losses_per_h=0.3)
    world = simulation.World(scenario, {one.key: length for one, length in zip(jobs, lengths, strict=True)}, seed=1)
    found = simulation.simulate(jobs, world)
    assert found["node_losses"] > 0
    assert found["goodput"] >= simulation.MIN_GOODPUT
    assert found["makespan_s"] >= simulation.lower_bound_s(lengths, 16)

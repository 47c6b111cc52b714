"""The plan and the decisions: keys, costs, feasibility, order, restarts. No Ray."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution.cluster import refuse_infeasible
from orchestrator.plan.errors import ResourcesError
from orchestrator.plan.jobs import Request, described, make_plan
from orchestrator.plan.policies import (
    FailureKind,
    GiveUp,
    Node,
    Retry,
    after_failure,
    as_it_fits,
    longest_first,
    num_fitting,
    num_slots,
    why_infeasible,
    why_unplaceable,
)
from orchestrator.runs.comparing.rows import plan_rows
from orchestrator.runs.configuration import train_configuration
from orchestrator.runs.data import plan_as_far_as_known
from workloads.config import DataSpec, Resources, RunConfig
from workloads.config.data import ArchiveData, FolderData, ParquetData
from workloads.config.load import apply_override, load_comparison, load_config
from workloads.errors import DataError

DATA = DataSpec(fingerprint="f" * 64, channels=3, image_size=8, num_classes=10)


def planned(raw: dict[str, Any], *overrides: str) -> Any:
    for override in overrides:
        raw = apply_override(raw, override)
    return make_plan(RunConfig.model_validate(raw), DATA)


def keys(raw: dict[str, Any], *overrides: str) -> list[str]:
    return [job.key for job in planned(raw, *overrides).jobs]


def test_parameters_are_those_of_the_network(tiny_run: dict[str, Any]) -> None:
    from workloads.models.build import build_model

    for job in planned(tiny_run).jobs:
        model = build_model(job.job.model, channels=3, image_size=8, num_classes=10)
        assert job.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert job.num_active_parameters == job.num_parameters


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "training.log_every_images=32",
        "training.checkpoint_every_images=64",
        "execution.max_attempts=7",
        "execution.resources.num_cpus=2",
        "evaluation.seed=5",
    ],
)
def test_what_changes_no_weights_changes_no_key(tiny_run: dict[str, Any], override: str) -> None:
    assert keys(tiny_run, override) == keys(tiny_run)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "training.learning_rate=0.5",
        "training.images=2048",
        "training.batch_size=32",
        "diffusion.objective=v_prediction",
        "data.flip=true",
        "model.num_res_blocks=2",
    ],
)
def test_what_changes_weights_changes_every_key(tiny_run: dict[str, Any], override: str) -> None:
    if override == "data.flip=true":
        flipped = make_plan(RunConfig.model_validate(tiny_run), DATA.model_copy(update={"flip": True}))
        changed = [job.key for job in flipped.jobs]
    else:
        changed = keys(tiny_run, override)
    assert not set(changed) & set(keys(tiny_run))


def test_one_experts_change_leaves_the_others_keys(tiny_run: dict[str, Any]) -> None:
    changed = keys(tiny_run, "strategy.experts.2.specialisation=0.9")
    same = [a == b for a, b in zip(changed, keys(tiny_run), strict=True)]
    assert same == [True, True, False, True]


def test_fields_of_a_reference_that_came_later_leave_its_fingerprint_as_it_was(tiny_run: dict[str, Any]) -> None:
    first = {"kind", "path", "image_size", "channels", "num_classes", "class_conditional", "flip", "split", "one_class"}
    labels = {"label_column", "sparse_labels"}
    for data, fields in (
        (FolderData(path=Path("/x")), first),
        (ArchiveData(path=Path("/x")), first | labels),
        (ParquetData(path=Path("/x")), first | labels | {"image_column"}),
    ):
        assert described(data).keys() == fields
    accepting = planned(tiny_run, "reference={kind: parquet, path: /x, missing_parts: accept}")
    assert accepting.fingerprint != planned(tiny_run, "reference={kind: parquet, path: /x}").fingerprint


def test_the_fingerprint_names_what_the_result_depends_on(tiny_run: dict[str, Any]) -> None:
    base = planned(tiny_run).fingerprint
    assert planned(tiny_run, "execution.max_attempts=7", "name=b").fingerprint == base
    assert planned(tiny_run, "evaluation.seed=5").fingerprint != base
    assert planned(tiny_run, "strategy.cuts=[200,500,750]").fingerprint != base


def test_long_jobs_go_first_and_ties_are_stable() -> None:
    assert longest_first({"b": 2.0, "a": 2.0, "c": 3.0}) == ["c", "a", "b"]


AMOUNT = st.sampled_from([0.25, 0.5, 1, 2])


@given(st.lists(AMOUNT, max_size=5), st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2))
def test_no_more_slots_than_a_search_over_all_placements_finds(cpus: list[float], nodes: list[int]) -> None:
    requests = [Resources(num_cpus=amount) for amount in cpus]
    available = [{"CPU": float(node)} for node in nodes]
    best = 0
    for places in itertools.product(range(-1, len(nodes)), repeat=len(cpus)):
        free = [float(node) for node in nodes]
        for amount, place in zip(cpus, places, strict=True):
            if place >= 0:
                free[place] -= amount
        if min(free) >= 0:
            best = max(best, sum(place >= 0 for place in places))
    found = num_slots(requests, available)
    assert found <= best
    if len(nodes) == 1 and len(set(cpus)) <= 1:
        assert found == best


def test_workers_of_a_job_are_placed_all_or_none() -> None:
    three = Request(Resources(), num_workers=3)
    assert num_fitting([three, Request(Resources())], [{"CPU": 2.0}, {"CPU": 1.0}]) == 1  # three, and nothing is left
    assert num_fitting([three, Request(Resources())], [{"CPU": 2.0}]) == 1  # what the three do not take is free
    on_one = Request(Resources(), num_workers=2, placement="STRICT_PACK")
    assert num_fitting([on_one], [{"CPU": 1.0}, {"CPU": 1.0}]) == 0
    assert num_fitting([on_one, on_one], [{"CPU": 1.0}, {"CPU": 3.0}]) == 1
    halves = Request(Resources(num_cpus=0, num_gpus=0.5))
    assert num_fitting([halves] * 5, [{"GPU": 1.0}, {"GPU": 1.0}]) == 4


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        (["execution.workers_per_expert=2"], [{"CPU": 1.0}], "workers_per_expert is 2, but only 1 of them fit at once"),
        (
            ["execution.workers_per_expert=4", "execution.placement=STRICT_PACK"],
            [{"CPU": 3.0}, {"CPU": 2.0}],
            "workers_per_expert is 4, but only 3 of them fit at once on one node",
        ),
        (["execution.workers_per_expert=4"], [{"CPU": 3.0}, {"CPU": 2.0}], None),
        (["execution.workers_per_expert=4", "execution.min_workers=2"], [{"CPU": 2.0}], None),
        (
            ["execution.workers_per_expert=8", "execution.min_workers=3"],
            [{"CPU": 3.0}],
            "min_workers needs 4, but only 3 of them fit at once",
        ),
    ],
)
def test_a_group_that_never_fits_is_named(
    tiny_run: dict[str, Any], overrides: list[str], nodes: list[dict[str, float]], expected: str | None
) -> None:
    made = planned(tiny_run, *overrides)
    assert [job.num_workers for job in made.jobs] == [int(overrides[0][-1])] * 4
    assert why_unplaceable(made.jobs[0], nodes) == expected


def test_workers_are_no_part_of_a_key(tiny_run: dict[str, Any]) -> None:
    """All draws are of the whole batch; tests/multiprocess shows that only last bits depend on how many share it."""
    assert keys(tiny_run, "execution.workers_per_expert=4") == keys(tiny_run)
    assert keys(tiny_run, "execution.workers_per_expert=4", "execution.min_workers=2") == keys(tiny_run)


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ([], (1,)),
        (["execution.workers_per_expert=8"], (8,)),
        (["execution.workers_per_expert=8", "execution.min_workers=1"], (8, 4, 2, 1)),
        (["execution.workers_per_expert=8", "execution.min_workers=3"], (8, 4)),
        (["training.batch_size=12", "execution.workers_per_expert=6", "execution.min_workers=2"], (6, 4, 3, 2)),
    ],
)
def test_fewer_workers_have_equal_parts_of_a_batch(
    tiny_run: dict[str, Any], overrides: list[str], counts: tuple[int, ...]
) -> None:
    assert planned(tiny_run, *overrides).jobs[0].worker_counts == counts


def test_fewer_workers_of_a_remix_share_the_experts_of_a_step(tiny_run: dict[str, Any]) -> None:
    strategy = {"kind": "remix", "num_experts": 6, "num_bases": 4, "experts_per_step": 4}
    model = {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2}
    raw = tiny_run | {"strategy": strategy, "model": model, "execution": {"num_workers": 12, "min_workers": 1}}
    made = planned(raw, "training.batch_size=24")
    assert made.jobs[0].worker_counts == (12, 8, 4, 2, 1)  # 6 and 3 divide the batch, but not the experts


@pytest.mark.parametrize(
    ("occupied", "cpus", "expected"),
    [
        (0, [8.0], 8),
        (0, [4.0, 4.0], 8),
        (0, [4.0, 3.0], 4),
        (3, [4.0, 3.0], 4),
        (4, [4.0, 3.0], 2),
        (6, [4.0, 3.0], 2),  # not even they fit: it queues for the fewest
    ],
)
def test_a_group_takes_what_fits_beside_the_others(
    tiny_run: dict[str, Any], occupied: int, cpus: list[float], expected: int
) -> None:
    job = planned(tiny_run, "execution.workers_per_expert=8", "execution.min_workers=2").jobs[0]
    nodes = [{"CPU": amount} for amount in cpus]
    assert as_it_fits(job, [Request(Resources())] * occupied, nodes).num_workers == expected
    assert as_it_fits(job.by(2), [Request(Resources())] * occupied, nodes).num_workers == expected


A100, LABELLED = Node({"GPU": 1.0, "accelerator_type:A100": 1.0}, {"zone": "a"}), Node({"CPU": 4.0}, {"zone": "b"})


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"num_gpus": 1, "accelerator_type": "A100", "num_cpus": 0}, None),
        ({"num_gpus": 1, "accelerator_type": "H100"}, "resources.accelerator_type is H100, but the nodes offer A100"),
        ({"label_selector": {"zone": "b"}}, None),
        ({"label_selector": {"zone": "in(b, c)", "spot": "!true"}}, None),
        ({"label_selector": {"zone": "!b"}}, "resources.num_cpus is 1, but no node has more than 0"),
        (
            {"label_selector": {"zone": "c"}},
            "resources.label_selector asks for zone=c, but the nodes offer zone=a, zone=b",
        ),
        (
            {"label_selector": {"market": "spot"}},
            "resources.label_selector asks for market=spot, but the nodes offer no such label",
        ),
    ],
)
def test_kinds_of_gpu_and_labels(resources: dict[str, Any], expected: str | None) -> None:
    assert why_infeasible(Resources.model_validate(resources), [A100, LABELLED]) == expected
    assert num_slots([Resources.model_validate(resources)], [A100, LABELLED]) == (expected is None)


def test_infeasible_requests_are_named() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert why_infeasible(Resources(num_cpus=4), nodes) is None
    assert why_infeasible(Resources(num_cpus=8), nodes) == "resources.num_cpus is 8, but no node has more than 4"
    reason = why_infeasible(Resources(num_cpus=4, num_gpus=1), nodes)
    assert reason == "no single node has 4 CPU, 1 GPU together"
    custom = why_infeasible(Resources(custom={"highmem": 1}), nodes)
    assert custom == "resources.custom.highmem is 1, but no node has more than 0"


def test_a_job_that_fits_nowhere_is_refused_before_anything_starts(tiny_run: dict[str, Any]) -> None:
    jobs = planned(tiny_run, "execution.resources.num_gpus=2").jobs
    with pytest.raises(ResourcesError, match=r"expert_00: execution\.resources\.num_gpus is 2") as raised:
        refuse_infeasible(jobs, [{"CPU": 8.0, "GPU": 1.0}], "on this machine")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "attempts", "expected"),
    [
        (FailureKind.PROCESS_DIED, 1, Retry(1.0)),
        (FailureKind.PROCESS_DIED, 2, Retry(2.0)),
        (FailureKind.PROCESS_DIED, 3, GiveUp("its process died (why)")),
        (FailureKind.NOT_ANSWERING, 3, GiveUp("it stopped answering (why)")),
        (FailureKind.NODE_LOST, 99, Retry(0.0)),
        (FailureKind.OUTGROWN, 99, Retry(0.0)),
        (FailureKind.RAISED, 1, GiveUp("why")),
    ],
)
def test_what_follows_a_failure(kind: FailureKind, attempts: int, expected: Retry | GiveUp) -> None:
    assert after_failure(kind, attempts=attempts, max_attempts=3, cause="why") == expected


def test_pauses_between_attempts_are_bounded() -> None:
    decision = after_failure(FailureKind.PROCESS_DIED, attempts=50, max_attempts=100, cause="")
    assert decision == Retry(60.0)


@pytest.mark.parametrize(
    ("size", "active", "stored"), [("S", 32.96, 96.8), ("B", 130.51, 385.6), ("L", 458.10, 1364.7)]
)
def test_a_remix_stores_the_mixed_parameters_k_times(size: str, active: float, stored: float) -> None:
    """Published sizes, and the stored ones that follow from what the paper mixes (two thirds of a DiT)."""
    spec = DataSpec(fingerprint="f" * 64, channels=4, image_size=32, num_classes=1000)
    for experts in (8, 20):
        config = load_config(f"imagenet256-remix-{size.lower()}-4-{experts}")
        (job,) = make_plan(config.model_copy(update={"initial_weights": None}), spec).jobs
        assert round(job.num_active_parameters / 1e6, 2) == active
        assert round(job.num_parameters / 1e6, 1) == stored


def test_a_warm_up_longer_than_training_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = f"data={{kind: folder, path: {tmp_path}/none, image_size: 20, channels: 1, class_conditional: true}}"
    told = "note: training.warmup_images 1,000 is more than training.images 640: the learning rate never reaches 0.0014"
    for images in (640, 1000):
        config = load_config("demo-meme", [f"training.images={images}", nowhere])
        plan_as_far_as_known(config, tmp_path / "runs")
        assert (told in capsys.readouterr().err) == (images == 640)
        with pytest.raises(DataError):
            train_configuration(config, tmp_path / "runs", address=None, evaluate=False)
        assert (told in capsys.readouterr().err) == (images == 640)


def test_a_warm_up_longer_than_a_row_is_noted_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_rows(load_comparison("demo", ["rows.continued.training={warmup_images: 10000000}"]), tmp_path / "runs")
    noted = [line for line in capsys.readouterr().err.splitlines() if "never reaches" in line]
    assert [line.partition(": training.")[0] for line in noted] == ["note: continued"]

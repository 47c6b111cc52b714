"""What a comparison refuses before anything is trained, what its rows start from, and what its plan says."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from networks import TINY_UNET

from orchestrator.runs.comparing.comparison import run_comparison
from orchestrator.runs.comparing.output import difference
from orchestrator.runs.comparing.plan import print_rows
from orchestrator.runs.comparing.rows import check_rows, plan_rows
from workloads.analysis.intervals import mean_interval
from workloads.config.comparison import Comparison
from workloads.config.load import find_comparison, load_comparison, load_config, validate
from workloads.errors import ConfigError
from workloads.presets import list_presets


def changed(**changes: Any) -> Comparison:
    """The demo with other fields."""
    return validate(Comparison, load_comparison("demo").model_dump(mode="json") | changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluation": {"name": "demo", "seed": 7}}, "another evaluation than the base"),
        ({"diffusion": {"num_timesteps": 10}}, "num_steps 20 exceeds"),
        ({"data": {"class_conditional": False}}, "needs data.class_conditional"),
        ({"model": TINY_UNET}, "another .model.kind ldm_unet, not dit.; say initial_weights: null"),
        ({"model": {"depth": 5}}, "another .model.depth 5, not 4."),
        ({"data": {"image_size": 16}}, "its data are .*16.*the base's .*20"),
        ({"initial_weights": "/nowhere/x.safetensors"}, "/nowhere/x.safetensors does not exist"),
        ({"budget_images": 0}, "budget_images is 0"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_compared_is_named(change: dict[str, Any], expected: str) -> None:
    rows = load_comparison("demo").rows | {"last": {"strategy": {"kind": "single"}} | change}
    with pytest.raises(ConfigError, match=rf"rows\.last.*{expected}"):
        check_rows(changed(rows=rows))


def test_a_comparison_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    rows = load_comparison("demo").rows | {"last": {"strategy": {"kind": "single"}, "model": TINY_UNET}}
    with pytest.raises(ConfigError, match=r"rows\.last"):
        run_comparison(changed(rows=rows), tmp_path / "runs", address=None)
    assert not (tmp_path / "runs").exists()


def test_a_meme_row_has_networks_of_its_own_only_if_it_starts_from_nothing() -> None:
    experts = [{"specialisation": 0.8}, {"specialisation": 0.1, "model": {"depth": 3}}]
    row: dict[str, Any] = {"strategy": {"kind": "meme", "experts": experts}}
    with pytest.raises(ConfigError, match=r"rows\.meme .*model\.depth 3, not 4"):
        check_rows(changed(rows={"meme": row}))
    free = changed(
        rows={"meme": row | {"initial_weights": None}, "unet": {"initial_weights": None, "model": TINY_UNET}}
    )
    check_rows(free)
    assert not free.starts_from_base("meme")
    run = free.row_run("meme", 0, "/base")
    assert run.initial_weights is None
    assert [model.depth for model in run.strategy.architectures or ()] == [4, 3]


def test_a_base_of_several_networks_is_no_start() -> None:
    base = load_comparison("demo").base | {"strategy": {"kind": "independent", "num_experts": 2}}
    with pytest.raises(ConfigError, match=r"rows\.continued .*base\.strategy\.kind is independent"):
        check_rows(changed(base=base))


def test_budgets_are_of_a_row_or_of_each_network() -> None:
    rows = {"two": {"strategy": {"kind": "independent", "num_experts": 2}}}
    assert changed(rows=rows).row_run("two", 0, None).training.images == 8000
    assert changed(rows=rows, budget_for="network").row_run("two", 0, None).training.images == 16000
    own = {"two": rows["two"] | {"budget_images": 300}}
    assert changed(rows=own).row_run("two", 0, None).training.images == 150


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"base_name": "continued"}, "rows.continued has the name of the base's row"),
        ({"against": "continud"}, "'continud' is no row; did you mean 'continued'"),
        ({"published": {"x": {}}}, "'x' is no row"),
        ({"seeds": [0, 1, 0]}, "seeds: seed 0 is there twice; each counts as one more run, so give each once"),
        ({"seeds": [1, 1.0]}, "seeds: seed 1 is there twice"),
    ],
    ids=str,
)
def test_names_of_rows_are_checked(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        changed(**change)


@pytest.mark.parametrize("name", list_presets("comparisons"))
def test_every_comparison_plans_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = load_comparison(name)
    rows = plan_rows(comparison, tmp_path)
    assert [row.name for row in rows] == list(comparison.row_names)
    for row in rows:
        published = row.published
        if published is not None and published.num_parameters is not None:
            # The papers', of one network; 1 % is what a guess about where mixers stand leaves.
            assert row.plan.num_active_parameters == pytest.approx(published.num_parameters, rel=0.01)
    print_rows(comparison, rows)
    printed = capsys.readouterr().out
    assert all(row in printed for row in comparison.row_names)
    assert all(published.note in printed.replace("\n", " ") for published in comparison.published.values())


@pytest.mark.parametrize("name", list_presets("comparisons"))
def test_every_comparison_says_command_cost_and_result(name: str) -> None:
    from workloads.presets import text_of

    lines = text_of(name, "comparisons").splitlines()
    header = "\n".join(lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))])
    assert f"rememe compare {name}" in header
    assert "# Cost:" in header
    assert "# Result:" in header or name in {"demo", "cifar10"}


def test_what_holds_rows_is_a_comparison_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("preset: demo\nbudget_images: 64\n")
    found = find_comparison(str(tmp_path / "own.yaml"))
    assert found is not None
    assert found.budget_images == 64
    assert find_comparison("demo-meme") is None
    assert find_comparison("nothing") is None


def test_a_base_may_be_a_preset_with_changes(tmp_path: Path) -> None:
    text = "name: x\nbudget_images: 64\nrows: {a: {strategy: {kind: single}}}\n"
    (tmp_path / "x.yaml").write_text(text + "base: demo-meme\n")
    named = load_comparison(str(tmp_path / "x.yaml"), ["base.strategy.kind=single"])
    assert named.base_run(3).model == load_config("demo-meme").model
    (tmp_path / "y.yaml").write_text(text + "base: {preset: demo-meme, training: {images: 128}}\n")
    made = load_comparison(str(tmp_path / "y.yaml")).base_run(0)
    assert made.training == load_config("demo-meme", ["training.images=128"]).training


def test_the_interval_of_a_mean_is_students() -> None:
    """Of 2 values t(0.975, 1) = tan(0.475 pi) in closed form; of 3 values t^2 = 2 c^2 / (1 - c^2) with c = 0.95."""
    mean, half = mean_interval([1.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2), rel=1e-12)
    values = [0.5, 2.0, 0.25]
    _, half = mean_interval(values)
    quantile = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    assert half == pytest.approx(quantile * statistics.stdev(values) / math.sqrt(3), rel=1e-12)
    assert math.isnan(mean_interval([1.0])[1])


def test_a_difference_is_taken_seed_by_seed() -> None:
    assert difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]) == "+0.500 +- 0.000"
    assert difference([1.0], [3.0]) == "-2.000"

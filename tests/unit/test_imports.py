"""Imports point one way: workloads has never heard of Ray or MLflow, planning needs neither, and so on."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "workloads").rglob("*.py")) + sorted((ROOT / "orchestrator").rglob("*.py"))

CLUSTER = {"ray", "mlflow"}
HEAVY = {"torch", "diffusers", "torch_fidelity", "mlflow"}
PURE = {
    "plan",
    "policies",
    "describe",
    "layout",
    "spool",
    "errors",
    "cli",
    "space",
    "study",
    "laws",
    "split_ratios",
    "condition",
}
"""Modules of the orchestrator that import neither Ray nor MLflow, however indirectly their user would notice."""


def imported(file: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Top-level packages (and orchestrator's own modules) a file imports."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield node.module or ""


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    packages = {name.split(".")[0] for name in imported(file)}
    if file.is_relative_to(ROOT / "workloads"):
        assert not packages & (CLUSTER | {"orchestrator"})
    elif file.stem in PURE:
        assert not packages & CLUSTER
    if file.name != "tracking.py":
        assert "mlflow" not in packages
    if file.is_relative_to(ROOT / "workloads" / "config"):
        assert not packages & {"torch", "diffusers", "numpy"}  # descriptions load in a moment


def test_the_command_line_starts_with_nothing_heavy() -> None:
    at_start = {name.split(".")[0] for name in imported(ROOT / "orchestrator" / "cli.py", at_start_only=True)}
    assert at_start <= {"os", "sys", "pathlib", "typing", "typer", "orchestrator"}


@pytest.mark.parametrize("module", ["orchestrator.store", "orchestrator.joint", "orchestrator.actor"])
def test_reading_results_and_driving_load_no_torch(module: str) -> None:
    """Drivers, `rememe store` and Ray Train's controller start at once; torch takes seconds."""
    seen, waiting, reached = {module}, [module], set()
    while waiting:
        name = waiting.pop()
        file = ROOT.joinpath(*name.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if not file.is_file():
            reached.add(name.split(".")[0])
            continue
        packages = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        found = {*packages, *imported(file, at_start_only=True)} - seen
        seen |= found
        waiting += found
    assert "ray" in reached or module == "orchestrator.store"
    assert not reached & HEAVY


def test_no_file_is_long() -> None:
    assert not [file for file in MODULES if len(file.read_text().splitlines()) > 400]

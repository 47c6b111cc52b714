"""Imports point one way: workloads has never heard of Ray or MLflow, and every room keeps to its floor."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    file for package in ("workloads", "orchestrator", "rememe") for file in sorted((ROOT / package).rglob("*.py"))
]

CLUSTER = {"ray", "mlflow"}
HEAVY = {"torch", "diffusers", "torch_fidelity", "mlflow"}

FLOORS = {
    "plan": 0,
    "store": 1,
    "terminal": 2,
    "tracking": 3,
    "execution": 3,
    "runs": 4,
    "search": 5,
    "live": 6,
    "cli": 7,
}
"""Rooms of the orchestrator. A room imports itself and lower floors, never a neighbour on its own."""

SEARCH_FLOORS = {"space": 1, "inference": 1, "study": 2, "report": 3, "running": 4}
"""Rooms inside search/, by the same rule."""

WHAT_PLANS_KNOW = {"config", "errors", "places", "files", "sealed", "training.records", "training.result"}
"""Of workloads; the rest is imported where it is needed, for it brings torch."""


def imported(file: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Modules that a file imports."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            yield module
            if ROOT.joinpath(*module.split(".")).is_dir():  # a package's modules, imported by name
                yield from (f"{module}.{alias.name}" for alias in node.names)


def name_of(file: Path) -> str:
    """Dotted name, a package's without __init__."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def allowed(importer: str, target: str, floors: dict[str, int], depth: int) -> bool:
    """Whether one module may import another, by the floors of their rooms at this depth of the tree."""
    rooms = [(name.split(".") + [""] * (depth + 1))[depth] for name in (importer, target)]
    if rooms[0] == rooms[1] or not all(rooms):
        return True
    return floors[rooms[1]] < floors[rooms[0]]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    name, found = name_of(file), set(imported(file))
    packages = {one.split(".")[0] for one in found}
    if name.startswith("workloads"):
        assert not packages & (CLUSTER | {"orchestrator", "rememe"})
    if name.startswith("workloads.config"):
        assert not packages & {"torch", "diffusers", "numpy"}  # descriptions load in a moment
    if not name.startswith("orchestrator.tracking"):
        assert "mlflow" not in packages
    if name == "rememe":  # what the command line calls, so above all other rooms
        assert not any(target.startswith("orchestrator.cli") for target in found)
    elif not name.startswith("orchestrator.cli"):
        assert "rememe" not in packages
    if name.startswith("orchestrator") and not name.startswith(("orchestrator.execution", "orchestrator.cli")):
        assert "ray" not in packages or name == "orchestrator.search.running.tune"
    for target in found:
        if target.startswith("orchestrator."):
            assert allowed(name, target, FLOORS, depth=1), f"{name} imports {target}, which is not below it"
            if all(one.startswith("orchestrator.search.") for one in (name, target)):
                assert allowed(name, target, SEARCH_FLOORS, depth=2), f"{name} imports {target}, not below it"
    if name.startswith("orchestrator.plan"):
        assert "workloads" not in packages or all(
            any(f"{one}.".startswith(f"workloads.{known}.") for known in WHAT_PLANS_KNOW)
            for one in imported(file, at_start_only=True)
            if one.startswith("workloads")
        )


def test_importing_rememe_imports_nothing_else() -> None:
    at_start = set(imported(ROOT / "rememe" / "__init__.py", at_start_only=True))
    assert at_start <= {"os", "sys", "collections.abc", "pathlib", "typing", "workloads.imports"}


def test_every_room_says_what_it_holds() -> None:
    for package in [file for file in MODULES if file.name == "__init__.py" and "orchestrator" in file.parts]:
        said = ast.get_docstring(ast.parse(package.read_text())) or ""
        assert package.parent.name == "orchestrator" or ("In" in said and "Not in: " in said), package


def test_the_command_line_starts_with_nothing_heavy() -> None:
    for file in (ROOT / "orchestrator" / "cli").glob("*.py"):
        at_start = {name.split(".")[0] for name in imported(file, at_start_only=True)}
        light = {"collections", "contextlib", "gc", "os", "pathlib", "sys", "typing"}
        assert at_start <= light | {"typer", "orchestrator"}, file
        ours = {name for name in imported(file, at_start_only=True) if name.startswith("orchestrator.")}
        allowed_here = ("orchestrator.cli", "orchestrator.execution.environment", "orchestrator.terminal.notes")
        assert all(name.startswith(allowed_here) or name == "orchestrator.execution" for name in ours), file


@pytest.mark.parametrize("module", ["store.experts", "execution.actor", "execution.supervisor"])
def test_reading_results_and_driving_load_no_torch(module: str) -> None:
    """Drivers and `rememe store` start at once; torch takes seconds."""
    name = f"orchestrator.{module}"
    seen, waiting, reached = {name}, [name], set()
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
    assert ("ray" in reached) == (module != "store.experts")
    assert not reached & HEAVY


def test_no_file_is_long() -> None:
    assert not [file for file in MODULES if len(file.read_text().splitlines()) > 400]


def test_parts_of_workloads_keep_to_their_order() -> None:
    """Analysis looks at what training made, never the reverse; descriptions know each other and what lies below."""
    for file in (ROOT / "workloads" / "training").rglob("*.py"):
        assert not [one for one in imported(file) if one.startswith("workloads.analysis")], file
    parts = ("config", "errors", "files", "places", "presets", "sealed")
    known = tuple(f"workloads.{part}." for part in parts)
    for file in (ROOT / "workloads" / "config").rglob("*.py"):
        ours = {one for one in imported(file) if one.startswith("workloads")}
        assert all(f"{one}.".startswith(known) for one in ours), file

"""One word for one thing: no two classes, protocols or type aliases of the tree share a name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "workloads").rglob("*.py")) + sorted((ROOT / "orchestrator").rglob("*.py"))


def types_of(file: Path) -> Iterator[str]:
    """Names of the classes and aliases (a capitalised name for a type expression) that a module defines."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name


def test_no_two_types_share_a_name() -> None:
    places = defaultdict(list)
    for file in MODULES:
        for name in types_of(file):
            places[name].append(str(file.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: files for name, files in places.items() if len(files) > 1} == {}

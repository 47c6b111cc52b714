"""docs/promises.md names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if line.startswith("| ")]
NAMED = sorted({name for line in ROWS for name in re.findall(r"`(tests/[^`]+)`", line)})


def test_every_promise_names_a_test() -> None:
    rows = [line for line in ROWS if not line.startswith("| fault |")]
    assert len(rows) > 30
    assert [line for line in rows if not re.search(r"`tests/.+?::test_\w+` \|$", line)] == []


@pytest.mark.parametrize("name", NAMED)
def test_the_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

"""Twelve SIGKILLs at any moment: of a MEME, independent experts, a remix by two workers, and tracking."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
NUM_KILLS = 12


def test_killed_at_any_moment_all_ends_the_same(tmp_path: Path) -> None:
    """A process of its own: to fork after torch's threads have begun is not safe."""
    lines = tmp_path / "kills.jsonl"
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", str(NUM_KILLS), "--per-run", "3", "--out", lines]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=480)
    runs = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {run["scenario"] for run in runs} == {"meme", "independent", "remix", "tracking"}
    assert [one for run in runs for one in run["differences"]] == []
    assert sum(len(run["kills"]) for run in runs) >= NUM_KILLS

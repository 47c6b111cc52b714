"""Commands where something around them is missing: each has an answer, and none a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LISTS = f"exec {sys.executable} -m orchestrator.cli presets"

CASES = {
    "no-reader": (f"({LISTS}) | true; exit ${{PIPESTATUS[0]}}", 0, ""),
    "no-streams": (f"{LISTS} <&- >&- 2>&-", 0, ""),
    "full-disk": (f"{LISTS} > /dev/full", 1, "No space left on device"),
    "no-directory": (f"mkdir gone && cd gone && rmdir ../gone && {LISTS}", 2, "working directory has been removed"),
    "letters-unknown": (f"LC_ALL=C PYTHONIOENCODING=ascii PYTHONUTF8=0 {LISTS}", 0, ""),
    "no-terminal": (f"TERM=dumb COLUMNS=3 {LISTS}", 0, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_every_surrounding_has_an_answer(case: str, tmp_path: Path) -> None:
    command, code, told = CASES[case]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == code, errors
    assert told in errors
    assert "Traceback" not in errors

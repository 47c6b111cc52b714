"""A working directory that is removed while a command runs."""

import os
from pathlib import Path

import pytest

from orchestrator.runs.surroundings import shown, stand_somewhere


def test_who_stands_nowhere_goes_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    stand_somewhere(tmp_path)
    assert Path.cwd() == gone
    assert shown(gone / "x") == Path("x")
    gone.rmdir()
    assert shown(gone / "x") == gone / "x"
    stand_somewhere(tmp_path)
    assert Path.cwd() == tmp_path
    os.chdir(tmp_path.parent)

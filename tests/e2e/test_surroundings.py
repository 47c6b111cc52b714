"""Commands where something around them is missing: each has an answer, and none a traceback."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., "subprocess.CompletedProcess[str]"]

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


def test_two_who_train_the_same_at_once_where_much_is_missing(
    tiny_run: dict[str, Any],
    mounted: Callable[[str], Path],
    user_environment: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    """No home or a read-only one, ASCII, a temporary directory too long for sockets, a reader who leaves."""
    home, long = mounted("1m"), tmp_path / ("long-" * 24)
    subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    long.mkdir()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_run | {"strategy": {"kind": "single"}}))
    train = f"{sys.executable} -m orchestrator.cli train tiny.yaml --no-evaluate"
    commands = (
        f"env -u HOME LC_ALL=C PYTHONUTF8=0 TMPDIR={long} {train} 2>&1 | head -c 1; exit ${{PIPESTATUS[0]}}",
        f"HOME={home} TERM=dumb {train} < /dev/null",
    )
    environment = user_environment({"PYTHONPATH": str(Path.cwd())})
    both = [
        subprocess.Popen(
            ["bash", "-c", command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    said = [process.communicate(timeout=480)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Traceback" not in said[1]
    assert re.search("training|elsewhere .another command trains it|reused", said[1])
    (result,) = (tmp_path / "runs/store").glob("*/result.json")
    assert json.loads(result.read_text())["images_seen"] == tiny_run["training"]["images"]


REFUSED = {
    "a-file": ("/etc/passwd", "cannot be a directory"),
    "under-a-file": ("/etc/passwd/x", "cannot be written (Not a directory)"),
    "not-of-ours": ("/proc/x", "cannot be written (No such file or directory)"),
    "too-long": ("x" * 300, "cannot be a directory"),
    "read-only": ("disk", "cannot be written (Read-only file system)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["plan demo-meme", "train demo-meme", "search demo-search", "compare demo"])
def test_a_runs_directory_that_cannot_be_is_refused_first(
    command: str, case: str, rememe_here: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, told = REFUSED[case]
    if case == "read-only":
        disk = request.getfixturevalue("mounted")("1m")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = rememe_here(*command.split(), "--runs-dir", place, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("note: ")]) == 1
    assert [path for path in tmp_path.iterdir() if path.name != "disk"] == []


def test_a_runs_directory_that_is_a_file_is_refused_by_who_only_looks(rememe_here: Run, tmp_path: Path) -> None:
    for command in ("status", "store ls", "store verify", "store gc", "report x", "ui", "doctor"):
        done = rememe_here(*command.split(), "--runs-dir", "/etc/passwd", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert "--runs-dir /etc/passwd cannot be a directory" in done.stderr


def test_a_folder_as_mlflows_store_is_refused_before_training(rememe_here: Run, tmp_path: Path) -> None:
    done = rememe_here("train", "demo-meme", cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "sqlite:" in done.stderr
    assert "http:" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_ports_that_cannot_be_had_are_refused(rememe_here: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port, told in ((other.getsockname()[1], "Address already in use"), (99999, "65535"), (0, "1")):
            done = rememe_here("ui", "--port", port, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, "")
            assert told in done.stderr

"""What imports cost a process, at its start and at its end."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workloads.imports import unopened

ENDS = """
import atexit, threading, time
from workloads.imports import ends_at_once
with ends_at_once():
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("all of a pipe" * 1000)
    {last}
"""


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('a sentence')", 1),
        ("raise ValueError('a fault')", 1),
    ],
)
def test_a_program_that_ends_at_once_ends_as_any_other(last: str, code: int) -> None:
    ends = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
        for program in (ENDS.format(last=last), ENDS.format(last=last).replace("ends_at_once()", "threading.Lock()"))
    ]
    at_once, plain = [(end.returncode, end.stdout, end.stderr.splitlines()[-1:]) for end in ends]
    assert at_once == plain
    assert at_once[0] == code
    assert at_once[1].endswith("thread\nhandler\n")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that imports one of its two modules."""
    name = "rememe_test_package"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import heavy\n")
    (folder / "heavy.py").write_text("")
    (folder / "light.py").write_text("class Light: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [one for one in sys.modules if one.startswith(name)]:
        del sys.modules[module]


def test_a_module_is_imported_without_its_package_and_the_package_later(package: str) -> None:
    with unopened(package, "rememe_no_such_package"):
        light = __import__(f"{package}.light", fromlist=["Light"])
        assert f"{package}.heavy" not in sys.modules
    assert package not in sys.modules
    whole = __import__(package)
    assert f"{package}.heavy" in sys.modules
    assert __import__(f"{package}.light", fromlist=["Light"]).Light is light.Light
    with unopened(package):  # as it is
        assert sys.modules[package] is whole

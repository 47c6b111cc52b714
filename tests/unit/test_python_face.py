"""`import rememe`: the names it promises, the functions that the command line calls, and the wheel that holds it."""

import inspect
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rememe
from orchestrator.cli.app import main
from orchestrator.search.study.find import find_study
from orchestrator.search.study.study import Study
from workloads.config import RunConfig
from workloads.config.load import load_comparison
from workloads.ensemble import Ensemble

ROOT = Path(__file__).parents[2]

CALLS = {
    "train": ["train", "demo-meme", "seed=3", "--runs-dir", "r", "--no-evaluate"],
    "evaluate": ["evaluate", "runs/x", "--set", "seed=1", "--protocol", "demo"],
    "sample": ["sample", "runs/x", "--num", "3", "--seed", "5", "--steps", "2"],
    "search": ["search", "demo-search", "seed=3", "--max-failures", "2"],
}


def test_every_name_is_there_typed_and_explained() -> None:
    assert set(dir(rememe)) == set(rememe.__all__)
    assert rememe.Ensemble is Ensemble
    assert isinstance(rememe.load_config("demo-meme", ["seed=3"]), RunConfig)
    for name in set(rememe.__all__) - {"__version__"}:
        assert len(getattr(rememe, name).__doc__ or "") > 60, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rememe.trian  # noqa: B018
    for package in ("rememe", "workloads", "orchestrator"):
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("name", CALLS)
def test_the_command_line_calls_the_same_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the function takes: bound to its signature."""
    original: Callable[..., Any] = getattr(rememe, name)
    seen: list[dict[str, Any]] = []

    def stand_in(*args: Any, **kwargs: Any) -> None:
        seen.append(dict(inspect.signature(original).bind(*args, **kwargs).arguments))
        raise rememe.RememeError("seen")

    monkeypatch.setattr(rememe, name, stand_in)
    monkeypatch.setattr(sys, "argv", ["rememe", *CALLS[name]])
    with pytest.raises(SystemExit):
        main()
    (call,) = seen
    # A description by its name.
    told = {value.name if isinstance(value, RunConfig | Study) else str(value) for value in call.values()}
    assert CALLS[name][1] in told
    assert {"train": "r", "evaluate": "demo", "sample": "5", "search": "2"}[name] in told


@pytest.mark.parametrize("call", [lambda: rememe.train("demo-mem"), lambda: rememe.search("demo-serch")])
def test_mistakes_are_told_before_anything_begins(
    call: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rememe.RememeError, match=r"did you mean 'demo-(meme|search)'"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_files_are_named_by_path_or_text_and_one_override_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: demo-meme\n")
    assert rememe.load_config(file) == rememe.load_config(str(file))
    assert rememe.load_config(file, "training.images=500") == rememe.load_config(file, ["training.images=500"])
    study = tmp_path / "study.yaml"
    study.write_text("preset: demo-search\n")
    assert find_study(study, "seed=3") == find_study(str(study), ["seed=3"]) != find_study(study, [])
    compared = load_comparison("demo", "budget_images=1000")
    assert compared == load_comparison("demo", ["budget_images=1000"])
    missing = tmp_path / "none.yaml"
    for call in (rememe.load_config, rememe.train, rememe.search):
        with pytest.raises(rememe.RememeError, match=r"none\.yaml"):
            call(missing)
        with pytest.raises(rememe.RememeError, match="5 is no description"):
            call(5)  # type: ignore[arg-type]
    with pytest.raises(rememe.RememeError, match="override 5 is not of the form"):
        rememe.load_config("demo-meme", [5])  # type: ignore[list-item]


def test_ray_that_was_imported_without_its_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    assert not ray.is_initialized()
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(rememe.RememeError, match="ray was imported before"):
        rememe.train(rememe.load_config("demo-meme"))


USE = """
import rememe
from orchestrator.search.study.find import find_study
from workloads.presets import list_presets

assert all(rememe.load_config(name) for name in list_presets())
assert all(find_study(name, []) for name in list_presets("studies"))
print(rememe.__file__)
"""


def test_the_wheel_works_outside_the_tree(tmp_path: Path) -> None:
    """Presets, data, networks, templates and types are in it; what it depends on is borrowed from this environment."""
    here, uv = Path(sys.executable), Path(sys.executable).with_name("uv")
    build = [here, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("rememe-*.whl")
    assert wheel.name.startswith(f"rememe-{rememe.__version__}-")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run(install, check=True, timeout=120)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # A path only: what makes this environment's rememe the tree's is not read there.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: Path | str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    assert run(python.with_name("rememe"), "--version").strip() == f"rememe {rememe.__version__}"
    (file,) = run(python, "-c", USE).split()
    assert Path(file).is_relative_to(packages)
    for package in ("rememe", "workloads", "orchestrator"):
        assert files_of(packages, package) == files_of(ROOT, package)


def files_of(root: Path, package: str) -> set[str]:
    """Paths below root of what is in a package."""
    files = (file.relative_to(root) for file in (root / package).rglob("*") if file.is_file())
    return {str(file) for file in files if "__pycache__" not in file.parts}

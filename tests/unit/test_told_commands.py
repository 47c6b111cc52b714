"""Commands that --help, the README and the documentation tell a user to give are understood; Tab knows their words."""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.app import app, main
from orchestrator.cli.teaching import EXAMPLES
from orchestrator.search.study.find import find_study
from orchestrator.search.study.keys import explain_key
from workloads.config.load import load_comparison, load_config
from workloads.errors import ConfigError
from workloads.presets import list_presets

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def told_in(text: str) -> Iterator[str]:
    """Lines of blocks without a language (or `console`) that begin with rememe, comments left out."""
    for block in re.findall(r"^ *```(?:console|text)?\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().removeprefix("$ ").startswith("rememe "):
                yield line.strip().removeprefix("$ ").partition(" # ")[0].strip()


TOLD = [(page.name, line) for page in PAGES for line in told_in(page.read_text())]
TOLD += [(f"--help of {command}", line) for command, lines in EXAMPLES.items() for line in lines]


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The words of a command and what its parser makes of the rest; raises what it raises for a user."""
    rest, program, context, words = shlex.split(line)[1:], typer.main.get_command(app), None, []
    while hasattr(program, "commands"):
        context = program.make_context("rememe", rest, parent=context)
        name, program, rest = program.resolve_command(context, [*context._protected_args, *context.args])
        words.append(str(name))
    return " ".join(words), dict(program.make_context(words[-1], rest, parent=context).params)


@pytest.mark.parametrize(("where", "line"), TOLD, ids=lambda part: part[:70])
def test_a_told_command_is_understood(where: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    line = line.replace("…", "0123abcd").replace("[CONFIG]", "demo-meme").replace("[RUN]", "x")
    command, given = parsed(re.sub(r"\[--(\S+) ?([^\]]*)\]|\[([^\]=]+)\]", r"", line) if "[-" in line else line)
    if where.startswith("--help"):
        assert where == f"--help of {command}"
    source, overrides = (
        given.get("config") or given.get("study") or given.get("comparison"),
        given.get("overrides") or [],
    )
    if command == "evaluate" or (command == "doctor" and "/" in str(source)):
        return
    if command == "explain":
        assert given["key"] is None or explain_key(given["key"])
    if source is None or command == "report":
        return
    if source.endswith((".yaml", ".yml")) or source not in {name for kind in KINDS for name in list_presets(kind)}:
        # A file of the user's: its name stands for any; a study searched under a name of its own likewise.
        assert source.endswith((".yaml", ".yml")) or source.isupper(), f"{source} is no preset"
        for override in overrides:
            assert explain_key(override.partition("=")[0])
    elif command == "compare":
        load_comparison(source, overrides)
    elif (study := find_study(source, list(overrides))) is None:
        load_config(source, overrides)
    else:
        assert study.base_raw


KINDS = ("", "studies", "comparisons")


def test_pages_and_commands_are_found() -> None:
    assert len(TOLD) > 50
    assert {"README.md"} < {where for where, _ in TOLD}


def every_command(group: typer.Typer, path: str = "") -> Iterator[str]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{path}{command.name or command.callback.__name__}"
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from every_command(below.typer_instance, f"{path}{below.name} ")


@pytest.mark.parametrize("command", every_command(app))
def test_every_help_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, _ = call([*command.split(), "--help"], monkeypatch)
    assert code == 0
    assert f"  {EXAMPLES[command][0]}" in said


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["rememe", *arguments])
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("command", ["train", "plan", "search", "compare"])
def test_a_command_without_a_name_teaches(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, _ = call([command], monkeypatch)
    assert code == 2
    names = {"train": "demo-remix", "plan": "search-ratios", "search": "demo-search", "compare": "cifar10"}
    assert re.search(rf"^  {names[command]} .{{20,}}", said, flags=re.MULTILINE)
    assert f"  {EXAMPLES[command][0]}" in said


COMPLETED = {
    "rememe tra": {"train"},
    "rememe train demo-": {"demo-meme", "demo-remix"},
    "rememe search demo": {"demo-search"},
    "rememe compare d": {"demo"},
    "rememe train demo-meme training.warm": {"training.warmup_images="},
    "rememe explain training.ema_h": {"training.ema_halflife_images"},
    "rememe evaluate x --protocol fid1": {"fid10k"},
    "rememe sample runs/de": {"runs/demo-meme-01234567"},
    "rememe plan my": {"my.yaml"},
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("line", COMPLETED)
def test_tab_completes(shell: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").touch()
    (tmp_path / "runs" / "demo-meme-01234567").mkdir(parents=True)
    (tmp_path / "runs" / "demo-meme-01234567" / "plan.json").touch()
    monkeypatch.setenv("_REMEME_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    code, said, _ = call([], monkeypatch)
    assert code == 0
    for word in COMPLETED[line]:
        assert word in said
    assert "comparisons" not in said
    if shell == "bash":
        assert set(said.split()) == COMPLETED[line]


JSON_OF = {
    "presets": (["presets"], {"command", "name", "says"}),
    "explain": (
        ["explain", "training.batch_size"],
        {"default", "kinds", "meaning", "of", "owner", "path", "read_by", "source", "type", "unit"},
    ),
    "explain all": (
        ["explain"],
        {"default", "kinds", "meaning", "of", "owner", "path", "read_by", "source", "type", "unit"},
    ),
    "plan": (
        ["plan", "demo-meme"],
        {
            "expected_training_macs",
            "fingerprint",
            "jobs",
            "name",
            "num_active_parameters",
            "num_parameters",
        },
    ),
    "plan of a study": (
        ["plan", "search-ratios"],
        {
            "num_configurations",
            "num_jobs",
            "num_distinct_jobs",
            "images_trained",
            "images_without_store",
        },
    ),
    "status": (["status"], set()),
}
"""Keys of what is printed, or of each entry of a list: other programs read them."""


@pytest.mark.parametrize("case", JSON_OF)
def test_what_is_printed_as_json_keeps_its_keys(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments, keys = JSON_OF[case]
    monkeypatch.chdir(tmp_path)
    code, said, _ = call([*arguments, "--json"], monkeypatch)
    assert code == 0
    result = json.loads(said)
    for entry in result if isinstance(result, list) else [result]:
        assert keys <= entry.keys() if case == "plan of a study" else keys == entry.keys()


def test_wrong_names_offer_the_nearest_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-meme-01234567").mkdir(parents=True)
    (tmp_path / "runs" / "demo-meme-01234567" / "plan.json").touch()
    for command in (["sample", "demo-mem-01234567"], ["diff", "demo-meme-0123456", "x"]):
        code, _, said = call(command, monkeypatch)
        assert code == 2
        assert "did you mean runs/demo-meme-01234567?" in said
    with pytest.raises(ConfigError, match="did you mean 'demo-meme'"):
        load_config("demo-mem")

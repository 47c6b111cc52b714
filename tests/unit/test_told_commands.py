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
from workloads.config.load import find_comparison, load_comparison, load_config
from workloads.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def told_in(text: str) -> Iterator[str]:
    """Commands in blocks of no language, comments left out, and those that a text names in passing."""
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("rememe "):
                yield line.partition(" # ")[0].strip()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(line.split()) for line in re.findall(r"`(rememe \w[^`]*)`", prose))


TOLD = [(page.name, line) for page in PAGES for line in told_in(page.read_text())]
TOLD += [(f"--help of {command}", line) for command, lines in EXAMPLES.items() for line in lines]


def parsed(line: list[str]) -> tuple[str, dict[str, Any]]:
    """The words of a command and what its parser makes of the rest; raises what it raises for a user."""
    rest, program, context, words = line[1:], typer.main.get_command(app), None, []
    while hasattr(program, "commands"):
        context = program.make_context("rememe", rest, parent=context)
        name, program, rest = program.resolve_command(context, [*context._protected_args, *context.args])
        words.append(str(name))
    return " ".join(words), dict(program.make_context(words[-1], rest, parent=context).params)


KINDS = ("", "studies", "comparisons")
PLACEHOLDERS = {"CONFIG", "STUDY", "KEY", "NEXT", "EARLIER", "DIRECTORY", "PATH", "FOLDER", "OUT", "RUN", "JOB", "NAME"}
"""What stands for something of the user's."""

COMMANDS_OF_RUNS = {"plan", "train", "submit", "doctor", "search", "compare"}


@pytest.mark.parametrize(("where", "line"), TOLD, ids=lambda part: part[:70])
def test_a_told_command_is_understood(where: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")  # said once before
    words = shlex.split(line)
    if " ".join(words[1:]) in {*EXAMPLES, *GROUPS} and not where.startswith("--help"):  # named, not given
        return
    command, given = parsed([word.replace("…", "0123abcd") for word in words])
    if where.startswith("--help"):
        assert where == f"--help of {command}"
    if command == "explain" and given["key"] not in {None, *PLACEHOLDERS}:
        assert explain_key(given["key"])
    if command in COMMANDS_OF_RUNS:
        source = given.get("config") or given.get("study") or given.get("comparison")
        check_description(command, source, given["overrides"] or [])


GROUPS = {"data", "store", "analyze"}


def check_description(command: str, source: str | None, overrides: list[str]) -> None:
    """A preset is there and takes its overrides; of a user's file at least their keys are some."""
    if source is None or source in PLACEHOLDERS or (command == "doctor" and "/" in source):
        return
    if source.endswith(".yaml"):
        assert all(explain_key(override.partition("=")[0]) for override in overrides)
    elif command == "compare":
        load_comparison(source, overrides)
    elif command == "plan" and find_comparison(source, overrides) is not None:
        return
    elif (study := find_study(source, overrides)) is not None:
        assert study.base_raw
    else:
        load_config(source, overrides)


def test_pages_and_commands_are_found() -> None:
    assert len(TOLD) > 100
    assert {"README.md", "start.md", "promises.md", "data.md"} < {where for where, _ in TOLD}


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

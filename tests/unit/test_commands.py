"""What holds for every command of the command line."""

import inspect
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import wraps
from typing import Any, get_type_hints

import pytest
import typer

from orchestrator.cli.app import app, main
from workloads.errors import ConfigError

SECRET = "correct-horse-battery"
ADDRESS = f"postgresql://ann:{SECRET}@db/m"
SAID = f"{ADDRESS}, https://h/x?token={SECRET} and {SECRET} itself"


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each with the words that call it."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*path, command.name or command.callback.__name__), command
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from commands(below.typer_instance, (*path, str(below.name)))


COMMANDS = dict(commands(app))


def needed(command: Callable[..., Any]) -> list[str]:
    """Arguments without which it does not start."""
    given = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            is_option = isinstance(hints[name].__metadata__[0], typer.models.OptionInfo)
            given += [f"--{name}", ADDRESS] if is_option else [ADDRESS]
    return given


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code, and all that was said; what nobody expects is said as the interpreter says it."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["rememe", *arguments])
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue() + err.getvalue()
        except Exception as error:
            sys.__excepthook__(type(error), error, error.__traceback__)
    return 1, out.getvalue() + err.getvalue()


ENDS: dict[str, BaseException | None] = {
    "well": None,
    "configuration": ConfigError(SAID),
    "system": PermissionError(13, SAID, SAID),
    "unexpected": KeyError(SAID),
}


def test_the_commands_are_found() -> None:
    assert {("train",), ("data", "prepare"), ("store", "gc"), ("analyze", "spectra")} <= COMMANDS.keys()
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_shows_a_secret_however_it_ends(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.delenv("REMEME_TRACEBACK", raising=False)
    original = COMMANDS[path].callback
    for end, error in ENDS.items():

        @wraps(original)
        def act(error: BaseException | None = error, **_: object) -> None:
            print(SAID)
            print(SAID, file=sys.stderr)
            if error is not None:
                raise error

        monkeypatch.setattr(COMMANDS[path], "callback", act)
        code, said = run([*path, *needed(original)], monkeypatch)
        assert SECRET not in said, end
        assert said.count("***") >= 6, (end, said)
        assert (code == 0) == (end == "well"), (end, said)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_word_that_is_not_understood_is_repeated_without_its_secret(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run([*path, *needed(COMMANDS[path].callback), f"--no-such={ADDRESS}", ADDRESS], monkeypatch)
    assert code == 2
    assert SECRET not in said

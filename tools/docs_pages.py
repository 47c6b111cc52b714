"""Pages of the documentation that are made from the code when it is built; a hook of mkdocs (mkdocs.yml)."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

import orchestrator
import workloads
from orchestrator.cli.app import app
from orchestrator.search.study.keys import ROOTS, all_keys
from workloads.config.reference import Key
from workloads.errors import RememeError

ROOT = Path(__file__).parents[1]

HELP_COLUMNS = 100


def on_files(files: Files, *, config: Any) -> Files:
    """Add them to those that lie in docs/."""
    pages = {"configuration": configuration_page, "commands": commands_page, "errors": errors_page}
    for name, make in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def configuration_page() -> str:
    """Every key of a run, a study and a comparison, section by section."""
    parts = [
        "# Configuration",
        "Made from the classes that check a description. On the command line: `rememe explain KEY`. "
        "A key of several kinds is under the kind that has it; `*` stands for any element of a list.",
    ]
    told: set[str] = set()
    for root, keys in all_keys().items():
        parts.append(f"## Of {root}")
        parts.append(_first_sentence(ROOTS[root].__doc__))
        sections: dict[tuple[str, str], list[Key]] = {}
        for key in keys:
            sections.setdefault((key.owner, key.path.rpartition(".")[0]), []).append(key)
        for (owner, section), members in sections.items():
            if owner in told:  # elsewhere the same: an expert's model, the reference's data
                continue
            told.add(owner)
            kind = members[0].kinds[-1:] if owner != ROOTS[root].__name__ else ()
            title = " ".join([f"`{section}`" if section else "At the top", *(f"of kind `{one}`" for one in kind)])
            parts += [f"### {title}", _table(members)]
    return "\n\n".join(parts) + "\n"


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".") + "."


def _table(keys: list[Key]) -> str:
    rows = ["| key | type, unit | default | meaning, source |", "|---|---|---|---|"]
    for key in keys:
        name = key.path.rpartition(".")[2]
        kind = f"{key.type}; {key.unit}" if key.unit else key.type
        # The description may name its source itself.
        told = f"{key.meaning} ({key.source})" if key.source and key.source not in key.meaning else key.meaning
        cells = [f"`{name}`", kind, f"`{key.default}`", told]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Without what Markdown takes for a column, a tag or emphasis."""
    if text.startswith("`"):
        return text.replace("|", "\\|")
    return re.sub(r"([|<>*_{}\[\]])", r"\\\1", text)


def commands_page() -> str:
    """The --help of every command."""
    parts = ["# Command line", "What `--help` says, made from the commands."]
    for words, said in helps(typer.main.get_command(app), ("rememe",)):
        parts += [f"## {' '.join(words)}", f"```text\n{said}\n```"]
    return "\n\n".join(parts) + "\n"


def helps(command: Any, words: tuple[str, ...], parent: Any = None) -> Iterator[tuple[tuple[str, ...], str]]:
    """A command's --help, and those of the commands below it."""
    context = command.context_class(command, info_name=words[-1], parent=parent, max_content_width=HELP_COLUMNS)
    context.terminal_width = HELP_COLUMNS
    yield words, command.get_help(context).strip()
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, (*words, name), context)


def errors_page() -> str:
    """Every sentence that an error may say, by class, with what the class means."""
    parts = [
        "# What went wrong",
        "Every error a user can mend is one sentence with the value and the next step. Below is each of them, `…` "
        "standing for a value; search this page for a piece of yours. Exit code 2: nothing was begun, mend what the "
        "sentence names. 1: something failed on the way; what was finished is kept, and the same command goes on. 130: "
        "interrupted, checkpoints are written. `REMEME_TRACEBACK=1` shows where in the code.",
    ]
    sentences = told_errors()
    for error in sorted(error_classes(), key=lambda one: (-len(sentences.get(one.__name__, [])), one.__name__)):
        parts += [f"## {error.__name__}", f"Exit code {error.exit_code}. {' '.join((error.__doc__ or '').split())}"]
        parts.append("\n".join(f"- {_cell(one)}" for one in sorted(set(sentences.get(error.__name__, [])))))
    return "\n\n".join(part for part in parts if part) + "\n"


def error_classes() -> set[type[RememeError]]:
    """RememeError and all below it, wherever they are defined."""
    for package in (workloads, orchestrator):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "errors" in module.name or module.name in {"workloads.training.hooks", "workloads.training.result"}:
                importlib.import_module(module.name)
    found: set[type[RememeError]] = set()
    waiting: list[type[RememeError]] = [RememeError]
    while waiting:
        found.add(one := waiting.pop())
        waiting += one.__subclasses__()
    return found


def told_errors() -> dict[str, list[str]]:
    """By class: the sentences that raise statements and validators hold. ValueErrors are of descriptions."""
    found: dict[str, list[str]] = {}
    for package in ("workloads", "orchestrator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                    continue
                name = node.exc.func.id if isinstance(node.exc.func, ast.Name) else ""
                if name == "ValueError" and "config" in file.parts:
                    name = "ConfigError"
                sentence = _sentence(node.exc.args[0])
                if name.endswith(("Error", "Stopped")) and name != "ValueError" and len(sentence.split()) > 2:
                    found.setdefault(name, []).append(sentence)
    return found


def _sentence(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_sentence(value) for value in values)
        case ast.BinOp(left=left, right=right):
            return _sentence(left) + _sentence(right)
        case _:
            return "…"

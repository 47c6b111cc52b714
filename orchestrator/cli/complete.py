"""What a shell offers when Tab is pressed: names of presets, runs and keys. Silent about whatever is wrong."""

import os
from collections.abc import Iterator
from pathlib import Path

import typer

FILES = (".yaml", ".yml")


def complete_config(incomplete: str) -> Iterator[tuple[str, str]]:
    """Presets, and descriptions in files."""
    yield from _presets("", incomplete)
    yield from _files(incomplete)


def complete_any(incomplete: str) -> Iterator[tuple[str, str]]:
    """The same, and studies and comparisons."""
    for folder in ("", "studies", "comparisons"):
        yield from _presets(folder, incomplete)
    yield from _files(incomplete)


def complete_study(incomplete: str) -> Iterator[tuple[str, str]]:
    """Studies, and descriptions in files."""
    yield from _presets("studies", incomplete)
    yield from _files(incomplete)


def complete_comparison(incomplete: str) -> Iterator[tuple[str, str]]:
    """Comparisons, and descriptions in files."""
    yield from _presets("comparisons", incomplete)
    yield from _files(incomplete)


def complete_protocol(incomplete: str) -> Iterator[str]:
    """Protocols by name."""
    from workloads.config.evaluation import PROTOCOLS

    yield from (name for name in PROTOCOLS if name.startswith(incomplete))


def complete_run(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Runs by their directories."""
    given = ctx.params.get("runs_dir") or os.environ.get("REMEME_RUNS_DIR") or "runs"
    for file in sorted(Path(given).glob("*/plan.json")):
        if str(file.parent).startswith(incomplete):
            yield str(file.parent)


def complete_key(incomplete: str) -> Iterator[tuple[str, str]]:
    """Keys of descriptions, section by section."""
    from orchestrator.search.study.keys import all_keys

    depth, offered = incomplete.count("."), set()
    for keys in all_keys().values():
        for key in keys:
            path = ".".join(key.path.split(".")[: depth + 1])
            if path.startswith(incomplete) and path not in offered:
                offered.add(path)
                yield path, key.meaning.partition(".")[0] if path == key.path else ""


def complete_override(incomplete: str) -> Iterator[tuple[str, str]]:
    """key= for each key."""
    if "=" not in incomplete:
        yield from ((f"{path}=", meaning) for path, meaning in complete_key(incomplete))


def _presets(folder: str, incomplete: str) -> Iterator[tuple[str, str]]:
    from workloads.presets import list_presets, summary_of

    for name in list_presets(folder):
        if name.startswith(incomplete):
            yield name, summary_of(name, folder)


def _files(incomplete: str) -> Iterator[tuple[str, str]]:
    folder, _, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).iterdir())
    except OSError:
        return
    for entry in entries:
        if (
            entry.name.startswith(start)
            and (entry.is_dir() or entry.suffix in FILES)
            and not entry.name.startswith(".")
        ):
            yield f"{folder}/{entry.name}" if folder else entry.name, ""

"""The keys of everything that a YAML file may describe, and which modules read them."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import orchestrator
import workloads
from orchestrator.search.study.study import Study
from workloads.config import RunConfig
from workloads.config.base import StrictConfig
from workloads.config.comparison import Comparison
from workloads.config.explain import nearest
from workloads.config.reference import Key, keys_of
from workloads.errors import ConfigError

ROOTS: dict[str, type[StrictConfig]] = {"a run": RunConfig, "a study": Study, "a comparison": Comparison}

MAX_NAMED = 5


@cache
def all_keys() -> dict[str, tuple[Key, ...]]:
    """The keys of each kind of description."""
    return {root: tuple(keys_of(model)) for root, model in ROOTS.items()}


@dataclass(frozen=True)
class Explained:
    """What is to be said of a key, under all kinds of section where it is the same."""

    root: str
    """What it is a key of: a run, a study, a comparison."""

    key: Key
    kinds: tuple[str, ...]
    """Under which kinds it is there; empty: always."""

    def to_json(self) -> dict[str, Any]:
        """One entry of `rememe explain --json`."""
        return self.key.to_json() | {"of": self.root, "kinds": list(self.kinds), "read_by": readers_of(self.key)}


def explain_key(word: str) -> list[Explained]:
    """The key that a user means, or those that begin so; several where kinds differ in what it is.

    A number stands for any element of a list. ConfigError with the nearest if there is none.
    """
    path = re.sub(r"\.\d+(?=\.|$)", ".*", word)
    every = [(root, key) for root, keys in all_keys().items() for key in keys]
    found = [(root, key) for root, key in every if key.path == path]
    found = found or [(root, key) for root, key in every if key.path.startswith(f"{path}_")]
    if found:
        return _merged(found)
    ending = sorted({key.path for _, key in every if key.path.endswith((f".{path}", f".{path}_"))})
    if len(ending) == 1:
        return explain_key(ending[0])
    if ending:
        more = f", and {len(ending) - MAX_NAMED} more" if len(ending) > MAX_NAMED else ""
        raise ConfigError(f"{word} is the end of several keys: {', '.join(ending[:MAX_NAMED])}{more}; write one out")
    paths = list(dict.fromkeys(key.path for _, key in every))
    near = nearest(path, paths) or next((one for one in paths if one.rpartition(".")[2] == _last(path, paths)), None)
    hint = f"did you mean {near}?" if near else "rememe explain lists the sections"
    raise ConfigError(f"{word!r} is no key of a run, a study or a comparison; {hint}")


def _last(path: str, paths: list[str]) -> str | None:
    return nearest(path.rpartition(".")[2], [one.rpartition(".")[2] for one in paths])


def _merged(found: list[tuple[str, Key]]) -> list[Explained]:
    """Those that differ in their kinds alone as one."""
    groups: dict[tuple[str, Key], list[tuple[str, Key]]] = {}
    for root, key in found:
        groups.setdefault((root, replace(key, owner="", kinds=(), source="")), []).append((root, key))
    merged = []
    for same in groups.values():
        root, key = same[0]
        sources = dict.fromkeys(one.source for _, one in same if one.source)
        merged.append(
            Explained(
                root,
                replace(key, source="; ".join(sources)),
                tuple(" ".join(one.kinds) for _, one in same if one.kinds),
            )
        )
    return merged


def keys_below(section: str) -> list[Explained]:
    """The keys directly in a section ("" for the top of a run description); none if it is none."""
    start = re.escape(f"{section}." if section else "")
    for root, keys in all_keys().items():
        found = [(root, key) for key in keys if re.fullmatch(rf"{start}(\*\.)?[^.*]+", key.path)]
        if found:
            return _merged(found)
    return []


def readers_of(key: Key) -> list[str]:
    """Modules that read an attribute of this name, other than those that describe it; by name, so a guess."""
    name = key.path.rpartition(".")[2]
    pattern, found = re.compile(rf"\.{re.escape(name)}\b(?!\()"), []
    for package in (workloads, orchestrator):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            module = ".".join(file.relative_to(root.parent).with_suffix("").parts)
            if not module.startswith(("workloads.config.", "orchestrator.cli.")) and pattern.search(
                file.read_text(encoding="utf-8")
            ):
                found.append(module.removesuffix(".__init__"))
    return found

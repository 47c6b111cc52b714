"""YAML as people mean it: 1.2's words for numbers, each key once, and no text that stands for more than it says.

PyYAML reads YAML 1.1, in which 017 is 15, 1e6 a word and `no` false; here it only takes the text apart.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from workloads.errors import ConfigError

MAX_CHARACTERS = 2**20
"""Of a description; the longest study here has 2 KB."""

MAX_DEPTH = 40
MAX_VALUES = 50_000
"""With what aliases stand for."""

MAX_INT = 2**63 - 1

TAG = "tag:yaml.org,2002:"

SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""YAML 1.2's core schema, and Python's underscores between digits."""

NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What no name or path can have."""


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers: ClassVar[Any] = {}  # type: ignore[misc]  # as PyYAML has people do it


for _kind, _pattern in SCALARS.items():
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(rf"^(?:{_pattern})$"), None)


def parse_yaml(text: str, source: str) -> Any:
    """Plain values of a YAML text; `source` is what messages call it. Raises ConfigError, one sentence."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source} is {len(text):,} characters long; a description has at most {MAX_CHARACTERS:,}")
    try:
        _check_depth(text, source)
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        return None
    _count_values(node, source, {})
    return _value(node, source)


def _check_depth(text: str, source: str) -> None:
    """Before anything that calls itself for each level."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{source} is nested more than {MAX_DEPTH} deep; no description is")


def _count_values(node: yaml.Node, source: str, known: dict[int, int]) -> int:
    """Values below a node, each alias counted as what it stands for."""
    if id(node) in known:
        if not known[id(node)]:
            raise ConfigError(f"{source} has an alias that contains itself{_line(node)}; write it out")
        return known[id(node)]
    known[id(node)] = 0  # being counted
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count_values(child, source, known) for child in children)
    if total > MAX_VALUES:
        raise ConfigError(f"{source} has more than {MAX_VALUES:,} values, with what aliases stand for{_line(node)}")
    known[id(node)] = total
    return total


def _line(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})" if node.start_mark else ""


def _value(node: yaml.Node, source: str) -> Any:
    kind = node.tag.removeprefix(TAG)
    match node:
        case yaml.MappingNode() if kind == "map":
            return _mapping(node, source)
        case yaml.SequenceNode() if kind == "seq":
            return [_value(item, source) for item in node.value]
        case yaml.ScalarNode() if kind == "str" or re.fullmatch(SCALARS.get(kind, "(?!)"), node.value):
            return _scalar(kind, node, source)
    raise ConfigError(
        f"{source}: {node.tag} does not fit what stands there, or is not known{_line(node)}; leave it out"
    )


def _mapping(node: yaml.MappingNode, source: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source} has a key that is no word{_line(key)}; use words")
        if key.value in own or (key.value == "<<" and merged):
            raise ConfigError(f"{source} says {key.value} twice{_line(key)}; keep one of them")
        found = _value(value, source)
        if key.value != "<<":
            own[_scalar("str", key, source)] = found
            continue
        # Of several the first counts.
        for one in reversed(found if isinstance(found, list) else [found]):
            if not isinstance(one, Mapping):
                raise ConfigError(f"{source}: << takes in mappings, and this is none{_line(value)}")
            merged |= one
    return merged | own


def _scalar(kind: str, node: yaml.ScalarNode, source: str) -> Any:
    text, digits = node.value, node.value.replace("_", "").lower()
    if kind == "str":
        if NO_CHARACTER.search(text):
            raise ConfigError(f"{source}: {text[:40]!r} has a character that no name or path can have{_line(node)}")
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return digits == "true"
    if len(digits) > 400:
        raise ConfigError(
            f"{source}: the number {digits[:12]}... has {len(digits)} digits, which is too large{_line(node)}"
        )
    number = float(digits.replace(".inf", "inf").replace(".nan", "nan")) if kind == "float" else _whole(digits)
    if abs(number) > MAX_INT and (kind == "int" or (abs(number) == float("inf") and "inf" not in digits)):
        raise ConfigError(f"{source}: the number {digits[:24]} is too large{_line(node)}")
    return number


def _whole(digits: str) -> int:
    """017 is seventeen, as it looks."""
    prefix = {"0o": 8, "0x": 16}.get(digits[:2])
    return int(digits[2:], prefix) if prefix else int(digits)

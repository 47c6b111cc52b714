"""Every key of a description from the classes themselves: type, unit, default, meaning, source."""

import re
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workloads.config.explain import model_members

UNITS = {
    r"(.*_)?images": "images",
    r".*_s": "s",
    r".*_gb": "GB",
    r"(micro_)?batch_size": "images",
    r"(image|patch)_size": "pixels",
    r"cuts": "timesteps",
}
"""By the name of a key, which carries its unit; what has none is a plain number or no number."""

SOURCE = re.compile(
    r"(?:[A-Z][\w-]+(?: (?:&|et) \w+\.?)? \d{4}, )?arXiv:\d{4}\.\d{5}(?:, (?:Sec|Fig|Eq|Table)\.? [\w.]+\b)?"
)
"""A paper, as descriptions name it."""

WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    type(None): "null",
    Any: "anything",
}


@dataclass(frozen=True)
class Key:
    """One key of a description."""

    path: str
    """Dotted, with * for every element of a list or mapping."""

    owner: str
    """Name of the class that has it."""

    kinds: tuple[str, ...]
    """The `kind` of each section around it that has several; the key is only there under these."""

    type: str
    unit: str
    default: str
    """As YAML; "required" if there is none."""

    meaning: str
    source: str
    """The papers that its description, or that of its class, names."""

    def to_json(self) -> dict[str, Any]:
        """One entry of `rememe explain --json`."""
        return asdict(self) | {"kinds": list(self.kinds)}


def keys_of(model: type[BaseModel], prefix: str = "", kinds: tuple[str, ...] = ()) -> Iterator[Key]:
    """All keys of a description, each section followed by what is in it."""
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        path = f"{prefix}{name}"
        yield key_of(model, name, path, kinds)
        inner, star = _inside(field.annotation)
        for member in inner:
            told = (*kinds, kind_of(member)) if len(inner) > 1 else kinds
            yield from keys_of(member, f"{path}{star}.", told)


def key_of(model: type[BaseModel], name: str, path: str = "", kinds: tuple[str, ...] = ()) -> Key:
    """What a class says of one of its fields."""
    field = model.model_fields[name]
    meaning = " ".join((field.description or "").split())
    papers = SOURCE.findall(meaning) or SOURCE.findall(" ".join((model.__doc__ or "").split()))
    return Key(
        path=path or name,
        owner=model.__name__,
        kinds=kinds,
        type=type_words(field.annotation, field.metadata),
        unit=_unit(name, field),
        default=default_words(field),
        meaning=meaning,
        source="; ".join(dict.fromkeys(papers)),
    )


def kind_of(model: type[BaseModel]) -> str:
    """The word that chooses this class where there are several."""
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _inside(annotation: Any) -> tuple[list[type[BaseModel]], str]:
    """The classes below a key, and how elements are named on the way: none, or a star."""
    if members := model_members(annotation):
        return members, ""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) in {tuple, list, dict}:
            for element in get_args(part):
                if members := model_members(element):
                    return members, ".*"
    return [], ""


def _unit(name: str, field: FieldInfo) -> str:
    holds = type_words(field.annotation, [])
    if "number" not in holds:
        return ""
    return next((unit for pattern, unit in UNITS.items() if re.fullmatch(pattern, name)), "")


def default_words(field: FieldInfo) -> str:
    """A default as a description would say it."""
    if field.is_required():
        return "required"
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def type_words(annotation: Any, metadata: Any) -> str:
    """A type and its limits, for people."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0], [*args[1:], *metadata])
    if members := model_members(annotation):
        words = f"section of kind {' or '.join(kind_of(one) for one in members)}" if len(members) > 1 else "section"
        return f"{words} or null" if type(None) in args else words
    if origin in {Union, types.UnionType}:
        words = " or ".join(type_words(one, metadata) for one in args if one is not type(None))
        return f"{words} or null" if type(None) in args else words
    return _plain_words(annotation, origin, args) + _limits(metadata)


def _plain_words(annotation: Any, origin: Any, args: tuple[Any, ...]) -> str:
    if origin is Literal:
        return ", ".join(map(_value, args))
    if origin in {tuple, list}:
        return _list_words(args)
    if origin is dict:
        return f"mapping to {type_words(args[1], [])}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _list_words(args: tuple[Any, ...]) -> str:
    if len(args) > 1 and args[1] is not Ellipsis:
        return f"list of {len(args)}: {', '.join(type_words(one, []) for one in args)}"
    return f"list of {type_words(args[0], [])}"


def _limits(metadata: Any) -> str:
    """Bounds, also those inside a Field of an Annotated."""
    found = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found.append(_limits(item.metadata))
        for name, words in (
            ("ge", "at least"),
            ("gt", "above"),
            ("le", "at most"),
            ("lt", "below"),
            ("min_length", "of length at least"),
            ("max_length", "of length at most"),
        ):
            value = getattr(item, name, None)
            if isinstance(value, int | float):
                found.append(f" {words} {value:,}" if abs(value) >= 1000 else f" {words} {value:g}")
    return ",".join(one for one in found if one)

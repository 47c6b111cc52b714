"""Turn a pydantic error into one sentence: the field, the value, what is allowed."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from workloads.config.base import NAME_PATTERN, SHA256_PATTERN

LONGEST = 60
"""Characters of a value in a message."""

OTHER_WORDS = {
    **dict.fromkeys(
        ("base", "base_config", "_base_", "defaults", "extends", "from", "include", "inherits", "parent", "presets"),
        "; to start from a preset and change some of it, say preset: NAME",
    ),
    "space": "; a study has a space, and is carried out by rememe search",
    "rows": "; a comparison has rows, and is carried out by rememe compare",
}
"""Keys that people try at the top of a description, and what they mean by them."""

SECTION = "it must be a section, with a key and a value on each line"
PLAIN_WORDS = {
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), SECTION),
    **dict.fromkeys(("tuple_type", "list_type"), "it must be a list"),
    **dict.fromkeys(("int_type", "int_from_float"), "it must be a whole number"),
    "bool_type": "it must be true or false",
    "float_type": "it must be a number",
}
"""What pydantic says in the words of Python's types."""

PATTERN_WORDS = {
    NAME_PATTERN: "it must be letters, digits, '.', '_' and '-', and begin with a letter or a digit",
    SHA256_PATTERN: "it must be 64 hexadecimal digits, in small letters",
}

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = LONGEST


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" plus the known words."""
    words = list(known)
    near = nearest(word, words)
    hint = f"; did you mean {near!r}?" if near else ";"
    return f"{hint} Known: {', '.join(words)}" if words else hint


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like it; None if none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def explain_error(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence about the error that explains most: unknown keys first, they often cause the others."""
    details = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    path, owner = _locate(model, details["loc"])
    return _sentence(details, path, owner)


def _sentence(details: ErrorDetails, path: str, owner: type[BaseModel] | None) -> str:
    kind, value, message = details["type"], details["input"], details["msg"]
    if kind == "extra_forbidden":
        hint = OTHER_WORDS.get(path) or suggest(path.rpartition(".")[2], owner.model_fields if owner else ())
        return f"{path}: unknown key{hint}"
    if kind == "missing":
        field = owner.model_fields.get(path.rpartition(".")[2]) if owner else None
        meaning = " ".join((field.description or "").split()) if field else ""
        return f"{path}: missing{f'. It is: {meaning}' if meaning else ''}"
    if kind == "union_tag_not_found":
        return f"{path}.kind: missing; say which kind of {path.rpartition('.')[2]} this is"
    if kind == "union_tag_invalid":
        context = details["ctx"]
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return f"{path}.kind is {short(context['tag'])}{suggest(str(context['tag']), tags)}"
    if kind == "value_error":
        return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        allowed = PATTERN_WORDS.get(details["ctx"]["pattern"], message)
    elif kind in {"too_short", "too_long"}:
        bound, least = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        allowed = f"it must have at {bound} {details['ctx'][least]} item(s)"
    else:
        allowed = PLAIN_WORDS.get(kind) or message.replace("Input should be", "it must be", 1)
    return f"{path} is {short(value)}; {allowed[0].lower()}{allowed[1:]}"


def short(value: Any) -> str:
    """A value for a message. Not its repr, which writes out all that it holds."""
    text = _REPR.repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """Dotted path without pydantic's union tags, and the model that owns its last key."""
    path: list[str] = []
    owner: type[BaseModel] | None = model
    current: Any = model
    for item in location:
        members = model_members(current)
        if len(members) > 1:  # a discriminated union: this item is its tag
            tagged = {str(get_args(member.model_fields["kind"].annotation)[0]): member for member in members}
            if item in tagged:
                owner = current = tagged[str(item)]
                continue
        if len(members) == 1:
            owner = members[0]
            field = owner.model_fields.get(str(item))
            path.append(str(item))
            current = field.annotation if field else None
        elif isinstance(item, int) or get_origin(current) is dict:
            path.append(str(item))
            current = next(iter(get_args(current)), None)
    return ".".join(path), owner


def model_members(annotation: Any) -> list[type[BaseModel]]:
    """The config classes an annotation allows (looking through Annotated, unions and None)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return model_members(get_args(annotation)[0])
    if get_origin(annotation) in {tuple, list, dict}:
        return []
    return [member for part in get_args(annotation) for member in model_members(part)]

"""What every part of the run description has in common."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)
from pydantic_core import PydanticCustomError


class StrictConfig(BaseModel):
    """Frozen, rejects unknown keys and infinities, and documents each field by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def not_a_flag(value: Any) -> Any:
    """The value, unless it is true or false, which Python counts as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "it must be a number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        raise PydanticCustomError("number", "it must be a number, without quotes or units")
    return not_a_flag(value)


Whole = Annotated[int, BeforeValidator(_number)]
"""A whole number, 1e6 included."""

Real = Annotated[float, BeforeValidator(_number)]

Flag = Annotated[bool, Strict()]
"""true or false, and no number or word that might mean it."""


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The same seeds. ValueError if one is there twice: its runs are one, and would narrow intervals as if two."""
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            raise ValueError(f"seed {seed} is there twice; each counts as one more run, so give each once")
    return seeds


Seeds = Annotated[tuple[Whole, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Of independent runs."""


class GrownConfig(StrictConfig):
    """One that has got fields since runs were stored: hashes and names made of its JSON must stay what they were."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that are written only where they differ from their defaults."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in write(self).items() if name not in unset}


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SHA256_PATTERN = "^[0-9a-f]{64}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=200)]
"""Becomes part of the names of files."""


def _user_path(path: Path) -> Path:
    """With ~ and $VARIABLE as a shell would have them. ValueError for what no file can be called."""
    text = str(path)
    if text.startswith("~"):
        try:
            text = str(path.expanduser())
        except RuntimeError:
            raise ValueError(f"{path} begins with a home directory, and there is none; write it out") from None
    text = os.path.expandvars(text)
    if (unset := re.search(r"\$(\w+|\{\w+\})", text)) is not None:
        raise ValueError(f"{path} names {unset[0]}, which is not set; write it out")
    if "\0" in text or len(os.fsencode(text)) > 4095 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(f"{text[:40]}... is too long for a path ({len(text)} characters)")
    return Path(text)


UserPath = Annotated[Path, AfterValidator(_user_path)]
"""A path as people write it."""


def merge(base: Any, update: Any) -> Any:
    """Nested mappings merged key by key; anything else is replaced. A new `kind` starts its section afresh."""
    if not (isinstance(base, dict) and isinstance(update, dict)):
        return update
    if "kind" in update and update["kind"] != base.get("kind"):
        return update
    return base | {key: merge(base.get(key), value) for key, value in update.items()}

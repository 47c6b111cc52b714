"""What a configuration must satisfy to be looked at. Pure."""

import operator
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from orchestrator.search.space.points import as_number
from workloads.config.base import StrictConfig
from workloads.config.explain import suggest
from workloads.errors import ConfigError

COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
CONDITION = re.compile(r"\s*([-+\w./]+)\s*(<=|>=|==|<|>)\s*([-+\w./]+)\s*")


class Condition(StrictConfig):
    """`left < right` between two fields, or a field and a number."""

    left: str
    """Dotted key of a run description, or a number."""

    comparison: Literal["<", "<=", ">", ">=", "=="]
    """How they are to compare."""

    right: str
    """Dotted key of a run description, or a number."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, raw: Any) -> Any:
        if not isinstance(raw, str):
            return raw
        match = CONDITION.fullmatch(raw)
        if match is None:
            raise ValueError(f"{raw!r} is not of the form field < field (or <=, >, >=, ==)")
        return dict(zip(("left", "comparison", "right"), match.groups(), strict=True))

    def holds(self, description: Mapping[str, Any]) -> bool:
        """Whether a run description (nested mappings) satisfies it. ConfigError if a side is no number there."""
        left, right = (self._number(description, side) for side in (self.left, self.right))
        return bool(COMPARISONS[self.comparison](left, right))

    def _number(self, description: Mapping[str, Any], side: str) -> float:
        # No field is called like a number, so a number is one.
        number = as_number(side)
        if number is not None:
            return number
        node: Any = description
        for key in side.split("."):
            known = _fields(node)
            if key not in known:
                hint = suggest(key, known) if known else ""
                raise ConfigError(f"condition {self}: a configuration has no field {side}{hint}")
            node = known[key]
        number = as_number(node)
        if number is None:
            hint = f"; name one of its elements, like {side}.0" if isinstance(node, list) else ""
            raise ConfigError(f"condition {self}: {side} is {node!r}, which is no number{hint}")
        return number

    def __str__(self) -> str:
        return f"{self.left} {self.comparison} {self.right}"


def _fields(node: Any) -> dict[str, Any]:
    if isinstance(node, list | tuple):
        return {str(index): item for index, item in enumerate(node)}
    return dict(node) if isinstance(node, Mapping) else {}

"""Points of a space: their values, in words for tables and as plain numbers for MLflow and figures. Pure."""

from fractions import Fraction
from typing import Any

Values = dict[str, Any]
"""Dotted path to a JSON value: one point of a space."""


def shown(values: Values, path: str, *, digits: int = 4) -> str:
    """A value, or those of all elements for a path with `*`; drawn numbers to so many significant digits."""
    if "*" not in path:
        return _text(values[path], digits)
    before, _, after = path.partition("*")
    found = [value for key, value in values.items() if key.startswith(before) and key.endswith(after)]
    return "  ".join(_text(value, digits) for value in found)


def _text(value: Any, digits: int) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item, digits) for item in value)}]"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value).replace("'", "")


def flat_numbers(values: Values) -> dict[str, float | str]:
    """Every value by itself: elements as path.0, path.1, ..., numbers and fractions like 3/8 as floats."""
    flat: dict[str, float | str] = {}
    for path, value in values.items():
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            flat |= flat_numbers({f"{path}.{key}": item for key, item in items})
        else:
            # True is a number in Python, but nobody means 1.0 by it.
            number = None if isinstance(value, bool) else as_number(value)
            flat[path] = str(value) if number is None else number
    return flat


def as_number(value: Any) -> float | None:
    """A number, or a text that is one ("3/8", "1e-3"), as a float; None for anything else."""
    try:
        return float(Fraction(value))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def short_path(path: str) -> str:
    """The last word of a path, which says enough in a table."""
    return path.rpartition(".")[2]

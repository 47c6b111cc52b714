"""Points as a table: a column for every parameter that varies, by the shortest name that tells it from others. Pure."""

from collections.abc import Mapping, Sequence

from orchestrator.search.space.points import short_path

Columns = dict[str, list[float | str]]
"""A parameter's short name to its value in every configuration; all numbers or all texts."""


def columns(points: Sequence[Mapping[str, float | str]]) -> Columns:
    """The parameters that all configurations have and that vary; those that always agree are one.

    points: flat values by dotted path, as flat_numbers() gives them.
    """
    paths = [path for path in points[0] if all(path in point for point in points)] if points else []
    alike: dict[tuple[float | str, ...], list[str]] = {}
    for path in paths:
        column = [point[path] for point in points]
        if any(isinstance(value, str) for value in column):
            # The estimator takes a column as numbers or as categories, not as both.
            column = [f"{value:g}" if isinstance(value, float) else value for value in column]
        if len(set(column)) > 1:
            alike.setdefault(tuple(column), []).append(path)
    names = [_name(paths) for paths in alike.values()]
    if len(set(names)) < len(names):
        # Two parameters end in the same word: whole paths tell them apart.
        names = [paths[0] for paths in alike.values()]
    return {name: list(column) for name, column in zip(names, alike, strict=True)}


def _name(paths: Sequence[str]) -> str:
    """strategy.experts.1.model.attention_share.0 is "expert 1 attention_share 0"; without the last number for all."""
    parts = paths[0].split(".")
    expert = f"expert {parts[parts.index('experts') + 1]} " if "experts" in parts[:-1] else ""
    parent, _, last = paths[0].rpartition(".")
    if not last.isdigit():
        return expert + last
    together = len(paths) > 1 and all(path.rpartition(".")[0] == parent for path in paths)
    return expert + short_path(parent) + ("" if together else f" {last}")

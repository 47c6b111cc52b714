"""Which parameters matter, by Optuna's estimator."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.space.basics import short_path

MIN_CONFIGURATIONS = 4
EVALUATOR = "fANOVA (Hutter et al. 2014)"

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
            column = [f"{value:g}" if isinstance(value, float) else value for value in column]
        if len(set(column)) > 1:
            alike.setdefault(tuple(column), []).append(path)
    names = [_name(paths) for paths in alike.values()]
    if len(set(names)) < len(names):
        names = [paths[0] for paths in alike.values()]
    return {name: list(column) for name, column in zip(names, alike, strict=True)}


def importances(varying: Columns, scores: Sequence[float]) -> dict[str, float] | str:
    """Share of each parameter in what makes scores differ, most important first; or a sentence why there is none."""
    if len(scores) < MIN_CONFIGURATIONS:
        return f"{len(scores)} scored configurations are too few to tell what matters; it takes {MIN_CONFIGURATIONS}."
    if not varying:
        return "No parameter that all scored configurations have varies, so nothing can be told about what matters."
    if len(set(scores)) == 1:
        return "All scores are equal, so nothing can be told about what matters."
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    laws = {name: _law(optuna, column) for name, column in varying.items()}
    study = optuna.create_study()
    for index, score in enumerate(scores):
        params = {name: column[index] for name, column in varying.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=laws, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(found)


def _law(optuna: Any, column: Sequence[float | str]) -> Any:
    numbers = [value for value in column if not isinstance(value, str)]
    if len(numbers) < len(column):
        return optuna.distributions.CategoricalDistribution(sorted({str(value) for value in column}))
    return optuna.distributions.FloatDistribution(min(numbers), max(numbers))


def _name(paths: Sequence[str]) -> str:
    """strategy.experts.1.model.attention_share.0 is "expert 1 attention_share 0"; without the last number for all."""
    parts = paths[0].split(".")
    expert = f"expert {parts[parts.index('experts') + 1]} " if "experts" in parts[:-1] else ""
    parent, _, last = paths[0].rpartition(".")
    if not last.isdigit():
        return expert + last
    together = len(paths) > 1 and all(path.rpartition(".")[0] == parent for path in paths)
    return expert + short_path(parent) + ("" if together else f" {last}")

"""Which parameters matter, by Optuna's estimators."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

MIN_CONFIGURATIONS = 4
EVALUATOR = "fANOVA (Hutter et al. 2014)"


def importances(points: Sequence[Mapping[str, float | str]], scores: Sequence[float]) -> dict[str, float] | str:
    """Share of each varying parameter, or a sentence why there is none."""
    varying = [name for name in points[0] if len({point.get(name) for point in points}) > 1] if points else []
    names = [name for name in varying if all(name in point for point in points)]
    if len(points) < MIN_CONFIGURATIONS:
        return f"{len(points)} scored configurations are too few to tell; it takes {MIN_CONFIGURATIONS}."
    if not names:
        return "Nothing that all configurations have varies."
    if len(set(scores)) == 1:
        return "All scores are equal."
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    laws = {name: _law(optuna, [point[name] for point in points]) for name in names}
    study = optuna.create_study()
    for point, score in zip(points, scores, strict=True):
        params = {name: _as_drawn(point[name], laws[name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=laws, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(found)


def _law(optuna: Any, values: Sequence[float | str]) -> Any:
    if any(isinstance(value, str) for value in values):
        return optuna.distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    numbers = [float(value) for value in values]
    return optuna.distributions.FloatDistribution(min(numbers), max(numbers))


def _as_drawn(value: float | str, law: Any) -> float | str:
    return float(value) if hasattr(law, "low") else str(value)

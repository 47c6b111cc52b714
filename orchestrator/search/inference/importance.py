"""Which parameters matter, by Optuna's estimator."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

MIN_CONFIGURATIONS = 4
EVALUATOR = "fANOVA (Hutter et al. 2014)"


def importances(varying: Mapping[str, Sequence[float | str]], scores: Sequence[float]) -> dict[str, float] | str:
    """Share of each parameter in what makes scores differ, most important first; or a sentence why there is none.

    varying: each parameter's value in every configuration, all numbers or all texts.
    """
    if len(scores) < MIN_CONFIGURATIONS:
        return f"{len(scores)} scored configurations are too few to tell what matters; it takes {MIN_CONFIGURATIONS}."
    if not varying:
        return "No parameter that all scored configurations have varies, so nothing can be told about what matters."
    if len(set(scores)) == 1:
        return "All scores are equal, so nothing can be told about what matters."
    import optuna

    # It announces every study and trial on stderr.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    laws = {name: _law(optuna, column) for name, column in varying.items()}
    study = optuna.create_study()
    for index, score in enumerate(scores):
        params = {name: column[index] for name, column in varying.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=laws, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A fixed seed: the same study has the same page every time.
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(found)


def _law(optuna: Any, column: Sequence[float | str]) -> Any:
    numbers = [value for value in column if not isinstance(value, str)]
    if len(numbers) < len(column):
        # Sorted, for the order of categories enters the estimate and that of a set is not fixed.
        return optuna.distributions.CategoricalDistribution(sorted({str(value) for value in column}))
    return optuna.distributions.FloatDistribution(min(numbers), max(numbers))

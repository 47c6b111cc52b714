"""All distributions by the key that names them in YAML. Pure; knows no search algorithm.

space:
  training.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
  strategy.cuts: {boundaries: {num_experts: 4, law: [free, equal_log_snr], step: 50}}
  strategy.experts.*.model.attention_share: {split_ratios: {at_most: 3/4, monotone: true}}
conditions: [strategy.cuts.0 >= 100]

Those of a single field are in fields.py, those over experts in laws.py and split_ratios.py, conditions in condition.py.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from pydantic import ValidationError

from orchestrator.search.space.context import Context
from orchestrator.search.space.fields import Choice, Int, LogUniform, Uniform
from orchestrator.search.space.laws import Boundaries, Each
from orchestrator.search.space.points import Values
from orchestrator.search.space.sources import NumberSource
from orchestrator.search.space.split_ratios import SPLIT_RATIOS_PATH, SplitRatios
from workloads.config.explain import explain_error, suggest


class Distribution(Protocol):
    """What each of them does; path is the field's, with `*` where it stands for every element of a list."""

    def draw(self, source: NumberSource, path: str, context: Context) -> Values:
        """A value for every field of the path, all of it from numbers that the source gives by name."""

    def grid(self, path: str, context: Context) -> Iterable[Values] | None:
        """Every value there is, in order, one by one; None if they are continuous."""


AnyDistribution = Choice | Uniform | LogUniform | Int | Each | Boundaries | SplitRatios
KINDS: dict[str, type[AnyDistribution]] = {
    "choice": Choice,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int": Int,
    "each": Each,
    "boundaries": Boundaries,
    "split_ratios": SplitRatios,
}


def parse_distribution(path: str, raw: Any) -> AnyDistribution:
    """The distribution that YAML describes. ValueError that says what is wrong with it."""
    kind = next((key for key in raw if key in KINDS), None) if isinstance(raw, dict) else None
    if kind is None:
        word = next(iter(raw)) if isinstance(raw, dict) and raw else repr(raw)
        raise ValueError(f"{path} has no distribution: {word!r}{suggest(str(word), KINDS)}")
    try:
        made = KINDS[kind].model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain_error(KINDS[kind], error)}") from None
    if not all(path.split(".")) or path.count("*") > 1:
        raise ValueError(f"{path!r} is no path like training.learning_rate, with at most one *")
    if isinstance(made, SplitRatios):
        _check_split_ratios(path, made)
    elif (kind == "each") != ("*" in path):
        raise ValueError(f"{path}: a path with * takes each (or split_ratios), and each takes a path with *")
    return made


def _check_split_ratios(path: str, made: SplitRatios) -> None:
    if not SPLIT_RATIOS_PATH.fullmatch(path):
        raise ValueError(
            f"{path}: split_ratios goes with model.attention_share or strategy.experts.*.model.attention_share"
        )
    if made.split_ratios.monotone and "*" not in path:
        raise ValueError(f"{path}: monotone compares experts; leave it out or take strategy.experts.*.{path}")

"""What a field of a study's space may be drawn from, by the key that names it in YAML."""

from typing import Any

from pydantic import ValidationError

from orchestrator.search.space.basics import Choice, Int, LogUniform, Uniform
from orchestrator.search.space.laws import Boundaries, Each
from orchestrator.search.space.split_ratios import SPLIT_RATIOS_PATH, SplitRatios
from workloads.config.explain import explain_error, suggest

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

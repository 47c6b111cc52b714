"""What the live page is told of a study: its table, the best score over images trained, and the Pareto front."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from orchestrator.plan.places import StudyDir
from orchestrator.search.inference.statistics import pareto_front
from orchestrator.search.report.standing import Standing, rung_of
from orchestrator.search.study.status import ConfigurationStatus, trials_of
from orchestrator.search.study.trial import Rung, Trial, reached
from workloads.errors import ConfigError

MAX_ROWS = 500


def study_view(study: StudyDir, configurations: Sequence[ConfigurationStatus]) -> dict[str, Any]:
    """Rows as `rememe status` has them; curves of the score by which all can be compared."""
    scores = list(dict.fromkeys(name for one in configurations for name in one.scores))
    varied = list(dict.fromkeys(name for one in configurations for name in one.varied))
    return {
        "columns": ["#", "state", *varied, *scores, "remark"],
        "num_texts": 2 + len(varied),
        "left_out": max(0, len(configurations) - MAX_ROWS),
        "rows": [_row(one, varied, scores) for one in configurations[-MAX_ROWS:]],
        **_curves(study.name, trials_of(study)),
    }


def _row(one: ConfigurationStatus, varied: Sequence[str], scores: Sequence[str]) -> list[str]:
    values = [one.varied.get(name, "") for name in varied]
    measured = [f"{one.scores[name]:.4g}" if name in one.scores else "" for name in scores]
    return [str(one.number), one.doing or one.state, *values, *measured, one.error]


def _curves(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """Nothing while nothing is scored, or where scores of several protocols cannot be compared."""
    try:
        standing = Standing(name, {}, trials)
    except ConfigError as error:
        return {"score": "", "doubt": str(error), "best": [], "front": []}
    # Where no score can be trusted, the held-out loss still can.
    for rung in dict.fromkeys((standing.judged_by, *reversed(standing.rungs))):
        trusted = [trial for trial in reached(trials, rung) if is_trusted(rung_of(trial, rung))]
        if trusted:
            best, points = best_so_far(trials, rung), front(trusted, rung)
            return {"score": standing.heading(rung), "doubt": "", "best": best, "front": points}
    doubt = "no score of this study is to be trusted" if standing.rungs else ""
    return {"score": "", "doubt": doubt, "best": [], "front": []}


def is_trusted(score: Rung) -> bool:
    """Whether it may lead."""
    return not score.doubts and math.isfinite(score.value)


def best_so_far(trials: Sequence[Trial], rung: str) -> list[tuple[int, float]]:
    """Images trained by the study so far and the lowest score until then, configurations in their order.

    Scores that are not to be trusted count as none.
    """
    images = accumulate(trial.images_trained for trial in trials)
    found: list[tuple[int, float]] = []
    for seen, trial in zip(images, trials, strict=True):
        score = trial.rung(rung)
        if score is not None and is_trusted(score):
            found.append((seen, min(score.value, found[-1][1]) if found else score.value))
    return found


def front(trials: Sequence[Trial], rung: str) -> list[dict[str, Any]]:
    """Score and multiply-adds per denoising step of each, and whether no other is better in both; none if all cost
    the same.
    """
    found = [(trial, (rung_of(trial, rung).value, trial.macs)) for trial in trials if trial.macs]
    if len({macs for _, (_, macs) in found}) < 2:
        return []
    best = set(pareto_front([point for _, point in found]))
    return [
        {"number": trial.number, "score": score, "macs": macs, "is_best": index in best}
        for index, (trial, (score, macs)) in enumerate(found)
    ]

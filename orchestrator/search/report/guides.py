"""Which scores can be trusted as a guide to dearer ones: rungs of the ladder, and what was predicted beforehand."""

from collections.abc import Sequence

from orchestrator.search.inference.statistics import rank_correlation
from orchestrator.search.report import words
from orchestrator.search.report.pictures import Picture, picture_of
from orchestrator.search.report.standing import Standing, rung_of
from orchestrator.search.study.options import LOSS
from orchestrator.search.study.trial import Trial, reached
from workloads.analysis.csv_text import Table
from workloads.analysis.study_figures import Pair, pairs_figure


def ladder_picture(standing: Standing) -> tuple[Picture | None, list[str]]:
    """How well each rung predicts the next: picture and sentences."""
    pairs, said = [], []
    # Neighbours only: each rung decides who climbs to the next.
    for cheap, dear in zip(standing.rungs, standing.rungs[1:], strict=False):
        both = [trial for trial in standing.trials if trial.rung(cheap) and trial.rung(dear)]
        if len(both) > 1:
            guide = (standing.heading(cheap), _values(both, cheap))
            target = (standing.heading(dear), _values(both, dear))
            pair, sentence = _guidance(guide, target, "do not stop configurations on it")
            pairs.append(pair)
            said.append(sentence)
    caption = "; ".join(reversed(standing.protocols))
    return (_pairs_picture(pairs, "each score against the next", caption, "guides") if pairs else None), said


def forecast_picture(standing: Standing) -> tuple[Picture | None, list[str]]:
    """Predicted against measured loss, and against the score: picture and sentences."""
    pairs, said = [], []
    for name in dict.fromkeys((LOSS, standing.judged_by)):
        both = [trial for trial in reached(standing.trials, name) if trial.predicted_loss is not None]
        if len(both) > 1:
            guide = ("predicted loss", [trial.predicted_loss or 0.0 for trial in both])
            target = (standing.heading(name), _values(both, name))
            pair, sentence = _guidance(guide, target, "the prediction was poor, so do not plan by it")
            pairs.append(pair)
            said.append(sentence)
    names = [name for name in (LOSS, standing.judged_by) if reached(standing.trials, name)]
    caption = "; ".join(standing.protocol(name) for name in names)
    return (_pairs_picture(pairs, "predicted against measured", caption, "predictions") if pairs else None), said


def _pairs_picture(pairs: Sequence[Pair], alt: str, caption: str, name: str) -> Picture:
    rows = [(pair.x_name, x, pair.y_name, y) for pair in pairs for x, y in zip(pair.x, pair.y, strict=True)]
    return picture_of(pairs_figure(pairs), alt, caption, **{name: Table(("x", "value_x", "y", "value_y"), rows)})


def _guidance(guide: tuple[str, Sequence[float]], target: tuple[str, Sequence[float]], poor: str) -> tuple[Pair, str]:
    """Name and values of a score and of the one it should predict; poor: what follows if it does not."""
    (x_name, x), (y_name, y) = guide, target
    pair = Pair(x_name, y_name, x, y, rank_correlation(x, y))
    return pair, f"{x_name} as a guide to {y_name}: {words.trust(pair.correlation, len(x), poor=poor)}"


def _values(trials: Sequence[Trial], rung: str) -> list[float]:
    return [rung_of(trial, rung).value for trial in trials]

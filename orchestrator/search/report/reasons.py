"""Why the best are best: which parameters matter, and what a better score costs."""

from orchestrator.search.inference.importance import EVALUATOR, importances
from orchestrator.search.inference.statistics import knee, pareto_front
from orchestrator.search.report import words
from orchestrator.search.report.pictures import Picture, picture_of
from orchestrator.search.report.standing import Standing, rung_of
from orchestrator.search.space.columns import columns
from orchestrator.search.space.points import flat_numbers
from orchestrator.terminal.words import si
from workloads.analysis.csv_text import Table
from workloads.analysis.study_figures import front_figure, importance_figure, parameters_figure
from workloads.evaluation.estimates import Z_95

SMALL_DIFFERENCE = 0.01
"""Costs that differ by less than this share are called alike."""

ENOUGH_PER_PARAMETER = 5
"""With fewer configurations for each parameter its importance is a hint only."""

COSTS = {"macs": "multiply-adds per step", "num_parameters": "stored parameters", "latency_s": "seconds per call"}


def importance_pictures(standing: Standing) -> tuple[list[Picture], str]:
    """Pictures, and a sentence on what they lack or how far to believe them."""
    points = [flat_numbers(trial.values) for trial in standing.judged]
    varying = columns(points)
    caption = standing.protocol(standing.judged_by) if standing.best else ""
    pictures = []
    found = importances(varying, standing.scores)
    if isinstance(found, str):
        said = found
    else:
        said = f"Estimated from {len(points)} configurations" + (
            ", few: take it as a hint." if len(points) < ENOUGH_PER_PARAMETER * len(varying) else "."
        )
        table = Table(("parameter", "share"), list(found.items()))
        figure = importance_figure(found, EVALUATOR)
        pictures.append(picture_of(figure, "importance of each parameter", caption, importance=table))
    if varying:
        figure = parameters_figure(varying, standing.scores, standing.heading(standing.judged_by))
        rows = [
            (trial.number, score, *(values[index] for values in varying.values()))
            for index, (trial, score) in enumerate(zip(standing.judged, standing.scores, strict=True))
        ]
        table = Table(("configuration", standing.heading(standing.judged_by), *varying), rows)
        pictures.append(picture_of(figure, "score against each parameter", caption, parameters=table))
    return pictures, said


def front_pictures(standing: Standing) -> list[tuple[Picture, str]]:
    """Score against each cost, and the knee in words."""
    objectives = standing.description.get("objectives", ())
    costs = dict.fromkeys(["macs", *(cost for cost in objectives if cost in COSTS)])
    return [front for cost in costs if (front := _front(standing, cost)) is not None]


def _front(standing: Standing, cost: str) -> tuple[Picture, str] | None:
    trials = [trial for trial in standing.judged if getattr(trial, cost)]
    rungs = [rung_of(trial, standing.judged_by) for trial in trials]
    points = [(rung.value, float(getattr(trial, cost))) for rung, trial in zip(rungs, trials, strict=True)]
    found = {value for _, value in points}
    # Where all cost the same there is no front.
    if len(found) < 2:
        return None
    front = pareto_front(points)
    chosen = front[knee([points[index] for index in front])]
    names = standing.heading(standing.judged_by), COSTS[cost]
    figure = front_figure(points, [Z_95 * (rung.stderr or 0.0) for rung in rungs], front, chosen, names)
    said = (
        f"{len(front)} of {len(points)} configurations are on the front. Its knee, beyond which more cost buys "
        f"little, is #{trials[chosen].number} ({standing.one_line(trials[chosen])}): {names[0]} "
        f"{words.score(rungs[chosen])} at {si(points[chosen][1]).strip()} {COSTS[cost]}."
    )
    if max(found) - min(found) < SMALL_DIFFERENCE * max(found):
        said += " But all costs lie within 1 % of each other, so cost is no reason to choose here."
    rows = [
        (trial.number, score, rung.stderr, spent, index in front, index == chosen)
        for index, (trial, rung, (score, spent)) in enumerate(zip(trials, rungs, points, strict=True))
    ]
    table = Table(("configuration", names[0], "stderr", cost, "on_front", "is_knee"), rows)
    alt, caption = f"score against {COSTS[cost]}", standing.protocol(standing.judged_by)
    return picture_of(figure, alt, caption, **{f"score_{cost}": table}), said

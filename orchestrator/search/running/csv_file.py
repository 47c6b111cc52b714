"""A study as a table for other programs: one line per configuration, numbers to the last bit."""

import csv
from collections.abc import Sequence
from pathlib import Path

from orchestrator.search.space.points import shown
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, metric_name, other_metrics, ranked
from workloads.evaluation.estimates import Estimate
from workloads.files import new_file

EXACT = 17
"""Significant digits that keep every bit of a number."""


def write_csv(file: Path, study: Study, trials: Sequence[Trial]) -> None:
    """One line per configuration, best first, failed ones last."""
    rungs = [name for name in study.ladder.rungs if any(trial.rung(name) for trial in trials)]
    best = ranked(trials, study.ladder.rungs)
    with new_file(file) as scratch, scratch.open("w", newline="") as target:
        writer = csv.writer(target)
        others = {name: other_metrics(trials, name) for name in rungs}
        headings = [part for name in rungs for part in (name, *(f"{name}_{other}" for other in others[name]))]
        scores = [part for heading in headings for part in (heading, f"{heading}_stderr")]
        writer.writerow(["number", "state", "run", *scores, "score_name", "protocol_hash", *study.space, "error"])
        for trial in [*best, *(trial for trial in trials if trial not in best)]:
            found = [trial.rung(name) for name in rungs]
            cells = [cell for name in rungs for cell in _cells(trial.rung(name), others[name])]
            # The dearest score names the protocol.
            last = next((rung for rung in reversed(found) if rung), None)
            named = [metric_name(last), last.protocol_hash] if last else ["", ""]
            varied = [shown(trial.values, path, digits=EXACT) for path in study.space]
            writer.writerow([trial.number, trial.state, " ".join(trial.runs), *cells, *named, *varied, trial.error])


def _cells(rung: Rung | None, others: Sequence[str]) -> list[float | str | None]:
    """Value and standard error of the score and of each other metric; empty where there is none."""
    if rung is None:
        return [""] * (2 + 2 * len(others))
    estimates = [Estimate(rung.value, rung.stderr), *(rung.others.get(name) for name in others)]
    return [cell for one in estimates for cell in ((one.value, one.stderr) if one else ("", ""))]

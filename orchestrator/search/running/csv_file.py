"""A study as a table for other programs: one line per configuration, numbers to the last bit."""

import csv
from collections.abc import Sequence
from pathlib import Path

from orchestrator.search.space.points import shown
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Trial, metric_name, ranked
from workloads.files import new_file

EXACT = 17
"""Significant digits that keep every bit of a number."""


def write_csv(file: Path, study: Study, trials: Sequence[Trial]) -> None:
    """One line per configuration, best first, failed ones last."""
    rungs = [name for name in study.ladder.rungs if any(trial.rung(name) for trial in trials)]
    best = ranked(trials, study.ladder.rungs)
    with new_file(file) as scratch, scratch.open("w", newline="") as target:
        writer = csv.writer(target)
        scores = [part for name in rungs for part in (name, f"{name}_stderr")]
        writer.writerow(["number", "state", "run", *scores, "score_name", "protocol_hash", *study.space, "error"])
        for trial in [*best, *(trial for trial in trials if trial not in best)]:
            found = [trial.rung(name) for name in rungs]
            cells = [cell for rung in found for cell in ((rung.value, rung.stderr) if rung else ("", ""))]
            # The dearest score names the protocol.
            last = next((rung for rung in reversed(found) if rung), None)
            named = [metric_name(last), last.protocol_hash] if last else ["", ""]
            varied = [shown(trial.values, path, digits=EXACT) for path in study.space]
            writer.writerow([trial.number, trial.state, " ".join(trial.runs), *cells, *named, *varied, trial.error])

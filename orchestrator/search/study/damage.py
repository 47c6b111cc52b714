"""Whether what a study keeps is as it was written, and for each broken file what to do."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.plan.fitness import Finding
from orchestrator.plan.places import RunsDir
from orchestrator.runs.damage import problem_with, told
from orchestrator.search.study.ledger import Ledger, read_trial
from workloads.errors import RememeError


def examine_study(path: Path) -> Iterator[Finding]:
    """A line for each part of a study's directory, and one for each broken file. Changes nothing."""
    ledger = Ledger(RunsDir(path.absolute().parent.parent), path.absolute().name)
    yield from told("study", "its description is as it was written", problem_with(ledger.description))
    files = ledger.dir.trial_files()
    yield from told("ledger", f"{len(files)} configurations are as they were written", _broken(files))


def _broken(files: list[Path]) -> Iterator[str]:
    for file in files:
        try:
            read_trial(file)
        except RememeError as error:
            yield str(error)

"""What long commands print with --json: the result on standard output, everything else on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.runs.configuration import Outcome
    from orchestrator.search.study.trial import Trial

TEXT_COLUMNS = {"row", "run", "protocol_hash", "doubts"}


@contextmanager
def telling(*, as_json: bool) -> Iterator[None]:
    """Where a command tells how far it is, which would be in the way of its result."""
    from contextlib import redirect_stdout

    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def print_json(result: Any) -> None:
    """Floats keep every bit; what is no number is null."""
    from json import dumps

    print(dumps(result, indent=2, default=str))


def of_outcome(outcome: "Outcome") -> dict[str, Any]:
    """`rememe train --json`."""
    from dataclasses import asdict

    jobs = [
        {"name": job.name, "key": job.key, "interval": list(job.interval)}
        | {name: getattr(result, name) for name in ("images_seen", "final_loss", "train_s", "weights_sha256")}
        for job, result in zip(outcome.plan.jobs, outcome.results, strict=True)
    ]
    return {
        "run": str(outcome.run.path),
        "fingerprint": outcome.plan.fingerprint,
        "jobs": jobs,
        "score": None if outcome.score is None else asdict(outcome.score),
    }


def of_trials(trials: "list[Trial]") -> list[dict[str, Any]]:
    """`rememe search --json`: every configuration, in order."""
    return [trial.model_dump(mode="json") for trial in trials]


def of_table(file: Path) -> list[dict[str, Any]]:
    """`rememe compare --json`: the rows of the table it has kept, a row per strategy and seed."""
    from orchestrator.runs.comparing.table import read_table

    return [
        {name: cell if name in TEXT_COLUMNS else _number(cell) for name, cell in row.items()}
        for row in read_table(file)
    ]


def _number(cell: str) -> int | float | None:
    if not cell:
        return None
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)

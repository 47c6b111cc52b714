"""`rememe search`: the configurations of a study one after the other, each training only the experts it lacks."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from orchestrator.cluster import connect
from orchestrator.configuration import train_configuration
from orchestrator.describe import prepare_data_of
from orchestrator.errors import RunStoppedError
from orchestrator.layout import RunsDir
from orchestrator.plan import Plan, plan
from orchestrator.search.space import Values, shown
from orchestrator.search.study import Study
from orchestrator.view import print_note, wide_console
from workloads.config import ProtocolConfig
from workloads.errors import ConfigError, RememeError
from workloads.evaluation.protocol import Score

NUM_SHOWN = 20
"""Configurations the table lists, best first."""


@dataclass(frozen=True)
class Result:
    """One configuration, scored or failed."""

    values: Values
    planned: Plan
    run_dir: Path
    score: Score | None
    error: str = ""


ScoreFunction = Callable[[Plan], Score]
"""What a configuration is worth; training and sampling by default."""


def run_study(study: Study, runs_dir: Path, *, address: str | None, max_failures: int) -> list[Result]:
    """Train and score every configuration, best first; the same call goes on where the last one stopped.

    A configuration that fails is reported and the study goes on, until more than max_failures have. Raises
    ConfigError before anything starts if a configuration could not run.
    """
    points = list(study.configurations())
    runs = RunsDir(runs_dir)
    plans = [plan(config, prepare_data_of(config, runs).spec(config.data)) for _, config in points]

    def score(planned: Plan) -> Score:
        outcome = train_configuration(planned.config, runs_dir, address=address, evaluate=True, comparison=study.name)
        assert outcome.score is not None
        return outcome.score

    with connect(address):
        results = _carry_out([values for values, _ in points], plans, runs, score, max_failures)
    results.sort(key=lambda result: float("inf") if result.score is None else result.score.value)
    _print(study, results)
    file = runs.path / f"{study.name}.csv"
    _write(file, study, results)
    print(f"kept in      {file}")
    return results


def _carry_out(
    points: Sequence[Values], plans: Sequence[Plan], runs: RunsDir, score: ScoreFunction, max_failures: int
) -> list[Result]:
    results: list[Result] = []
    for index, (values, planned) in enumerate(zip(points, plans, strict=True)):
        run_dir = runs.run(planned.config.name, planned.fingerprint)
        known = own_score(run_dir, planned.config.evaluation)
        if known is not None:
            results.append(Result(values, planned, run_dir, known))
            continue
        print_note(f"configuration {index + 1} of {len(plans)}: {planned.config.name}")
        try:
            results.append(Result(values, planned, run_dir, score(planned)))
        except (ConfigError, RunStoppedError):
            raise  # of the machine or the user, not of this configuration
        except RememeError as error:
            print_note(f"{planned.config.name} failed: {error}")
            results.append(Result(values, planned, run_dir, None, str(error)))
            if sum(result.score is None for result in results) > max_failures:
                raise RememeError(
                    f"more than {max_failures} configurations failed, the last one so: {error}; "
                    "raise --max-failures to go on"
                ) from error
    return results


def own_score(run_dir: Path, protocol: ProtocolConfig) -> Score | None:
    """The score a finished run has under its own protocol."""
    file = run_dir / "scores.json"
    if not file.exists():
        return None
    wanted = protocol.model_dump(mode="json", include={"name", "num_samples", "batch_size", "seed", "sampling"})
    for raw in json.loads(file.read_text()).values():
        if {key: raw["protocol"].get(key) for key in wanted} == wanted:
            return Score(**raw)
    return None


def _print(study: Study, results: Sequence[Result]) -> None:
    scored = [result for result in results if result.score is not None]
    table = Table(title=f"{study.name}: best of {len(results)} configurations")
    name = scored[0].score.name if scored and scored[0].score else "score"
    for column in (name, "run", *study.space):
        table.add_column(column, no_wrap=True)
    for result in results[:NUM_SHOWN]:
        value = f"{result.score.value:.3f}" if result.score else "failed"
        table.add_row(value, result.run_dir.name, *(shown(result.values, path) for path in study.space))
    wide_console().print(table)


def _write(file: Path, study: Study, results: Sequence[Result]) -> None:
    """One line per configuration, best first."""
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["score", "protocol_hash", "run", *study.space, "error"])
        for result in results:
            score = [result.score.value, result.score.protocol_hash] if result.score else ["", ""]
            writer.writerow(
                [*score, result.run_dir.name, *(shown(result.values, path) for path in study.space), result.error]
            )

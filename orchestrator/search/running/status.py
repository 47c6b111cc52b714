"""`rememe status`: what a run, a study or a job does that somebody else has started."""

import json
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from orchestrator.execution.jobs import JobServer
from orchestrator.plan.errors import ClusterError
from orchestrator.plan.places import RunsDir
from orchestrator.plan.standing import DriverState, RunStanding, remaining_s
from orchestrator.runs.status import STUDY_KIND, RunView, find_run
from orchestrator.runs.stored import runs_to_look_at
from orchestrator.search.study.status import ConfigurationStatus, configurations_of
from orchestrator.terminal.status import run_lines
from workloads.errors import ConfigError


@dataclass(frozen=True)
class WholeStatus:
    """Of a run with its experts, or of a study with its configurations."""

    status: RunStanding
    driver: DriverState
    configurations: tuple[ConfigurationStatus, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `rememe status --json` prints of it."""
        return {
            "driver": self.driver.value,
            "remaining_s": remaining_s(self.status.experts) if self.driver is DriverState.RUNS else None,
            "status": self.status.model_dump(mode="json"),
            "configurations": [one.model_dump(mode="json") for one in self.configurations],
        }

    @classmethod
    def from_json(cls, said: Any) -> "WholeStatus":
        """The same again. ValueError, KeyError or TypeError if it is something else."""
        configurations = tuple(ConfigurationStatus.model_validate(one) for one in said["configurations"])
        return cls(RunStanding.model_validate(said["status"]), DriverState(said["driver"]), configurations)

    def show(self) -> Group:
        """Lines and a table."""
        lines = run_lines(self.status, self.driver)
        if self.configurations:
            lines.renderables.append(_configurations_table(self.configurations))
        return lines


def status_here(named: str, runs: RunsDir) -> WholeStatus:
    """Of what lies in this runs directory. ConfigError if there is no such thing."""
    return whole_status(find_run(named, runs), runs)


def whole_status(view: RunView, runs: RunsDir) -> WholeStatus:
    """With the configurations, if it is a study."""
    run, status, driver = view
    study = runs.study(run.path.name)
    configurations = configurations_of(study) if status.kind == STUDY_KIND else []
    return WholeStatus(status, driver, tuple(configurations))


def status_of_job(server: JobServer, job_id: str) -> WholeStatus:
    """Of a submitted job: from its storage, or its runs directory if that is seen from here, or the cluster looks.

    ClusterError if it has written nothing yet.
    """
    entry = server.entry(job_id)
    words = shlex.split(entry.command)
    options = dict(pairwise(words))
    if "--storage" in options:
        return status_here(job_id, runs_to_look_at(Path(), options["--storage"]))
    if "--runs-dir" not in options:
        raise ClusterError(f"job {job_id} is {entry.status.lower()}; it has no --runs-dir, so only its log tells more")
    runs_dir = options["--runs-dir"]
    try:
        return status_here(job_id, RunsDir(Path(runs_dir)))
    except ConfigError:
        said = server.output_of(["rememe", "status", job_id, "--runs-dir", runs_dir, "--json"])
    for line in said.splitlines():
        try:
            return WholeStatus.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, ValidationError):
            continue
    raise ClusterError(
        f"job {job_id} is {entry.status.lower()} and has written no status under {runs_dir}; "
        f"see what it says: rememe logs {job_id}"
    )


def _configurations_table(configurations: tuple[ConfigurationStatus, ...]) -> Table:
    scores = list(dict.fromkeys(name for one in configurations for name in one.scores))
    varied = list(dict.fromkeys(name for one in configurations for name in one.varied))
    table = Table(box=SIMPLE)
    for name in ("", "state", *varied):
        table.add_column(name, no_wrap=True)
    for name in scores:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remark")
    for one in configurations:
        values = [one.varied.get(name, "") for name in varied]
        measured = [f"{one.scores[name]:.4g}" if name in one.scores else "" for name in scores]
        table.add_row(str(one.number), one.doing or one.state, *values, *measured, one.error)
    return table

"""`rememe plan STUDY`: what a study would take, and what its configurations share. Starts nothing."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from orchestrator.runs.description import spec_of
from orchestrator.search.space.points import short_path, shown
from orchestrator.search.study.configurations import Configurations
from orchestrator.search.study.plans import images_by_key, make_plans
from orchestrator.search.study.study import Study
from orchestrator.terminal.view import progress, si, wide_console
from workloads.config.load import apply_override, list_presets, read_raw, validate
from workloads.errors import ConfigError

MAX_SHOWN = 12
"""Configurations a table lists."""

MAX_SURVEYED = 2000
"""Configurations looked at where the budget is not in their number."""


def find_study(source: str, overrides: list[str]) -> Study | None:
    """The study of this name or in this YAML file; None if it is a run description, or nothing."""
    if source not in list_presets("studies") and (source in list_presets() or not Path(source).is_file()):
        return None
    raw = read_raw(source, "studies")
    if "space" not in raw:
        return None
    if isinstance(raw.get("base"), str) and any(override.startswith("base.") for override in overrides):
        raw["base"] = read_raw(raw["base"])
    for override in overrides:
        raw = apply_override(raw, override)
    return validate(Study, raw)


def unknown_study(source: str) -> ConfigError:
    """What to say where find_study found none."""
    studies = ", ".join(list_presets("studies"))
    return ConfigError(f"no study is called {source!r}, and no file of that name has a space; studies: {studies}")


def plan_study(study: Study, runs_dir: Path, *, as_json: bool) -> None:
    """Print how many configurations and distinct jobs a study has, and what reusing experts saves."""
    report, rows = _survey(study, runs_dir)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table(title=f"{study.name}: {report['num_configurations']} configurations")
    for column in (*map(short_path, study.space), "jobs", "new", "params", "MACs"):
        table.add_column(column, no_wrap=True)
    for row in rows[:MAX_SHOWN]:
        table.add_row(*map(str, row))
    console = wide_console()
    console.print(table)
    if len(rows) > MAX_SHOWN:
        console.print(f"... and {len(rows) - MAX_SHOWN} more")
    console.print(
        f"{report['num_distinct_jobs']} distinct jobs instead of {report['num_jobs']}: "
        f"{si(report['images_trained'])} training images instead of {si(report['images_without_store'])}, "
        f"{report['factor_saved']:.1f} times fewer"
    )


def _survey(study: Study, runs_dir: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    images: dict[str, int] = {}
    rows, num_jobs, images_without_store = [], 0, 0
    plans = make_plans(study, lambda config: spec_of(config, runs_dir))
    with progress("planning", "configurations") as advance:
        points = [values for values, _ in islice(Configurations(study), MAX_SURVEYED)]
        for index, values in enumerate(points):
            found = plans(values, index)
            wanted = images_by_key(found)
            num_new = len(wanted.keys() - images.keys())
            images |= wanted
            num_jobs += len(wanted)
            images_without_store += sum(wanted.values())
            jobs = found[-1].jobs
            macs = found[-1].mean_over_timesteps([job.macs for job in jobs])
            varied = [shown(values, path) for path in study.space]
            rows.append((*varied, len(wanted), num_new, si(sum(job.num_parameters for job in jobs)), si(macs)))
            advance(index + 1, len(points))
    report = {
        "name": study.name,
        "num_configurations": len(points),
        "num_jobs": num_jobs,
        "num_distinct_jobs": len(images),
        "images_trained": sum(images.values()),
        "images_without_store": images_without_store,
        "factor_saved": images_without_store / sum(images.values()),
        "jobs": [{"key": key, "images": count} for key, count in images.items()],
    }
    return report, rows

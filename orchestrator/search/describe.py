"""`rememe plan STUDY`: what a study would take, and what its configurations share. Starts nothing."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from orchestrator.describe import spec_of
from orchestrator.plan import plan
from orchestrator.search.space import shown
from orchestrator.search.study import Study
from orchestrator.view import progress, si, wide_console
from workloads.config.load import apply_override, list_presets, read_raw, validate

MAX_SHOWN = 12
"""Configurations a table lists."""


def find_study(source: str, overrides: list[str]) -> Study | None:
    """The study of this name or in this YAML file; None if it is a run description, or nothing."""
    if source not in list_presets("studies") and (source in list_presets() or not Path(source).is_file()):
        return None
    raw = read_raw(source, "studies")
    if "space" not in raw:
        return None
    for override in overrides:
        raw = apply_override(raw, override)
    return validate(Study, raw)


def plan_study(study: Study, runs_dir: Path, *, as_json: bool) -> None:
    """Print how many configurations and distinct jobs a study has, and what reusing experts saves."""
    report, rows = _survey(study, runs_dir)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table(title=f"{study.name}: {report['num_configurations']} configurations")
    for column in (*study.space, "jobs", "new", "params", "MACs"):
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
    with progress("planning", "configurations") as advance:
        points = list(study.configurations())
        for index, (values, config) in enumerate(points):
            planned = plan(config, spec_of(config, runs_dir))
            new = {job.key: job.job.training.images for job in planned.jobs if job.key not in images}
            images |= new
            num_jobs += len(planned.jobs)
            images_without_store += sum(job.job.training.images for job in planned.jobs)
            varied = [shown(values, path) for path in study.space]
            sizes = (si(sum(job.num_parameters for job in planned.jobs)), si(max(job.macs for job in planned.jobs)))
            rows.append((*varied, len(planned.jobs), len(new), *sizes))
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

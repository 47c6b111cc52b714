"""What the best configurations are: their samples, and which expert owns which timesteps."""

import logging
from itertools import pairwise

from orchestrator.plan.places import RunsDir
from orchestrator.search.report import words
from orchestrator.search.report.pictures import Picture, picture_of, stored_picture
from orchestrator.search.report.standing import Standing
from orchestrator.search.study.options import FULL, QUICK
from orchestrator.search.study.trial import metric_name
from workloads.analysis.csv_text import Table
from workloads.analysis.curves import newest_curve
from workloads.analysis.study_figures import Strip, boundary_figure
from workloads.grid import is_whole_png

logger = logging.getLogger(__name__)

NUM_STRIPS, NUM_GRIDS = 10, 3
GRID_WIDTH_PX = 640


def grid_pictures(standing: Standing, runs: RunsDir) -> list[Picture]:
    """Samples of the best configurations, all drawn by the same protocol."""
    choices = [_grids(standing, runs, name) for name in (FULL, QUICK)]
    return max(choices, key=len)


def _grids(standing: Standing, runs: RunsDir, name: str) -> list[Picture]:
    found = []
    for trial in standing.best[:NUM_GRIDS]:
        rung = trial.rung(name)
        if rung is None or not trial.runs:
            continue
        run = runs.run_named(trial.runs[0])
        # A quick protocol's grid has its hash in its name.
        own = [run.grid] if name == FULL else run.path.glob(run.other_grid("*", rung.protocol_hash).name)
        for file in [file for file in own if file.exists()][:1]:
            caption = f"{metric_name(rung)} {words.score(rung)}; {standing.one_line(trial)}"
            if is_whole_png(content := file.read_bytes()):
                found.append(stored_picture(content, f"#{trial.number}", caption, width_px=GRID_WIDTH_PX))
            else:
                logger.warning("%s is damaged and is left out; rememe evaluate %s draws it again", file, run.path)
    return found


def boundary_picture(standing: Standing, runs: RunsDir) -> Picture | None:
    """Who owns which timesteps in the best configurations."""
    strips: list[Strip] = []
    labels: dict[str, str] = {}
    for trial in standing.best[:NUM_STRIPS]:
        jobs = [job for job in trial.jobs if not job.brief]
        labels |= {job.architecture: job.label for job in jobs}
        owners = sorted({job.interval: job.architecture for job in jobs}.items())  # of several seeds once
        strips.append(Strip(f"#{trial.number}", words.score(trial.rung(standing.judged_by)), owners))
    if not labels:
        return None
    ends = [job.interval.hi for trial in standing.best for job in trial.jobs]
    num_timesteps = int(standing.description.get("num_timesteps", max(ends)))
    curves = {
        job.interval: curve
        for job in standing.best[0].jobs
        if not job.brief and (curve := newest_curve(runs.job(job.key).path)) is not None
    }
    title = standing.heading(standing.judged_by)
    figure = boundary_figure(strips, title, labels, num_timesteps, sorted(curves.items()))
    owned = [(strip.name, strip.score, *place, labels[it]) for strip in strips for place, it in strip.owners]
    losses = [
        (*interval, *bin_, loss)
        for interval, curve in sorted(curves.items())
        for bin_, loss in zip(pairwise(curve.edges), curve.losses, strict=True)
    ]
    tables = {"boundaries": Table(("configuration", title, "from_timestep", "to_timestep", "architecture"), owned)}
    if losses:
        columns = ("expert_from_timestep", "expert_to_timestep", "from_timestep", "to_timestep", "held_out_loss")
        tables["held_out_losses"] = Table(columns, losses)
    alt = "which expert owns which timesteps"
    return picture_of(figure, alt, standing.protocol(standing.judged_by), **tables)

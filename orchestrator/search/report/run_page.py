"""`rememe report RUN`: one self-contained HTML page: score, samples, experts and what they learned."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.plan.places import RunsDir
from orchestrator.plan.standing import ExpertStanding
from orchestrator.runs.status import RunView, view_run
from orchestrator.search.report.pictures import Picture, csv_uri, stored_picture
from orchestrator.search.report.rendering import write_page
from orchestrator.terminal.status import driver_words, restart_sentence, restarts_words
from orchestrator.terminal.words import duration, si
from workloads.evaluation.protocol import Score
from workloads.grid import is_whole_png
from workloads.pipeline import read_scores
from workloads.places import RunDir
from workloads.sealed import read_json
from workloads.training.result import read_result

logger = logging.getLogger(__name__)

FIGURE_WIDTH_PX, GRID_WIDTH_PX, NUM_GRIDS = 900, 640, 4
FIGURES = {
    "loss_by_timestep": "loss of each expert by timestep, thick where it is in charge",
    "training_loss": "training loss of each expert over the images it has seen",
    "coefficients": "what each expert is mixed of, in the end and over training",
    "loss_matrix": "loss of every expert at every timestep",
    "spectra": "frequency content of each expert's feature maps",
}
"""What is seen in a figure, in the order of the page."""


def write_run_report(run: RunDir, out: Path | None) -> Path:
    """Write the page and return where it is, report.html of the run by default."""
    return write_page("run.html.j2", RunPage(run, RunsDir(run.path.parent)), out or run.report)


class RunPage:
    """What the template asks for."""

    expert_columns = ("expert", "interval", "network", "params", "MACs", "images", "loss", "trained in", "restarts")

    def __init__(self, run: RunDir, runs: RunsDir) -> None:
        self.name, self._run, self._runs = run.path.name, run, runs
        self._plan: dict[str, Any] = read_json(run.plan, dict, "rememe train writes it anew")
        self._view: RunView | None = view_run(run)
        self._scores = [Score(**score) for score in read_scores(run.scores).values()]
        self.config = run.config.read_text() if run.config.is_file() else ""

    @cached_property
    def _standings(self) -> dict[str, ExpertStanding]:
        return {expert.key: expert for expert in self._view.status.experts} if self._view else {}

    @property
    def lead(self) -> str:
        """What it is, and how good."""
        jobs = self._plan["jobs"]
        said = f"{jobs[0]['strategy']} of {len(jobs)} job{'s' if len(jobs) > 1 else ''}"
        state = f" ({driver_words(self._view.status, self._view.driver)})" if self._view else ""
        if not self._scores:
            return f"{said}{state}. It has not been scored yet."
        score = self._scores[0]
        value = f"{score.value:.4g}{score.half_width.replace('+-', '±')}"
        protocol = f"protocol {score.protocol['name']}, hash {score.protocol_hash[:8]}"
        doubts = f"; {score.warning}" if score.warning else ""
        return f"{said}{state}. {score.name} is {value} over {score.num_samples:,} samples ({protocol}){doubts}."

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Sizes."""
        jobs = self._plan["jobs"]
        return [
            ("stored parameters", si(self._plan["num_parameters"])),
            ("active in a step", si(self._plan["num_active_parameters"])),
            ("multiply-adds of a step, at most", si(max(job["macs"] for job in jobs))),
            ("training images", f"{sum(job['images'] for job in jobs):,}"),
        ]

    @property
    def scores(self) -> list[tuple[str, str, float, str, int, str, str]]:
        """A row per protocol and metric."""
        rows = []
        for score in self._scores:
            for name, one in {score.name: score.estimate, **score.other_estimates}.items():
                interval = "" if one.stderr is None else "{:.4g} to {:.4g}".format(*one.interval)
                row = (score.protocol["name"], name, one.value, interval, score.num_samples, score.protocol_hash[:8])
                rows.append((*row, score.warning if name == score.name else ""))
        return rows

    @property
    def experts(self) -> list[list[tuple[str, object]]]:
        """A row per job: what is shown, and by what it is sorted."""
        return [self._expert(job) for job in self._plan["jobs"]]

    def _expert(self, job: dict[str, Any]) -> list[tuple[str, object]]:
        lo, hi = job["interval"]
        result = read_result(self._runs.job(job["key"]).path) if job["key"] else None
        standing = self._standings.get(job["key"])
        return [
            (job["name"], job["name"]),
            (f"[{lo}, {hi})", lo),
            (job["model"], job["model"]),
            (si(job["num_parameters"]), job["num_parameters"]),
            (si(job["macs"]), job["macs"]),
            (f"{job['images']:,}", job["images"]),
            (f"{result.final_loss:.4f}", result.final_loss) if result else ("", ""),
            (duration(result.train_s), result.train_s) if result else ("", ""),
            (restarts_words(standing), len(standing.restarts)) if standing else ("", ""),
        ]

    @property
    def restarts(self) -> list[str]:
        """A sentence for each."""
        return [restart_sentence(one, restart) for one in self._standings.values() for restart in one.restarts]

    @cached_property
    def grids(self) -> list[Picture]:
        """Samples, the run's own protocol first."""
        files = sorted(self._run.all_grids(), key=lambda file: (file != self._run.grid, file.name))
        return [
            stored_picture(content, file.stem, _grid_words(file == self._run.grid), width_px=GRID_WIDTH_PX)
            for file in files[:NUM_GRIDS]
            if (content := _png(file)) is not None
        ]

    @cached_property
    def figures(self) -> list[Picture]:
        """Pictures of the run directory with the numbers beside them."""
        files = {file.stem: file for file in self._run.figures.glob("*.png")}
        names = [*(name for name in FIGURES if name in files), *sorted(files.keys() - FIGURES.keys())]
        return [self._figure(name, content) for name in names if (content := _png(files[name])) is not None]

    def _figure(self, name: str, content: bytes) -> Picture:
        picture = stored_picture(content, FIGURES.get(name, name), width_px=FIGURE_WIDTH_PX)
        table = self._run.figure_table(name)
        tables = ((table.name, csv_uri(table.read_text())),) if table.is_file() else ()
        return picture._replace(caption=f"{FIGURES.get(name, name)}.", tables=tables)


def _grid_words(is_own: bool) -> str:
    return "drawn under the run's own protocol" if is_own else "drawn under another protocol"


def _png(file: Path) -> bytes | None:
    content = file.read_bytes()
    if is_whole_png(content):
        return content
    logger.warning("%s is damaged and is left out; the same rememe train draws it again", file)
    return None

"""`rememe report COMPARISON`: one self-contained HTML page of its table: score, cost and samples of every row."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.plan.places import RunsDir
from orchestrator.runs.comparing.table import COLUMNS, cell, figures_of, read_table, shown_columns
from orchestrator.search.report.pictures import Picture, csv_uri, picture_of, stored_picture
from orchestrator.search.report.rendering import write_page
from workloads.analysis.csv_text import Table
from workloads.analysis.study_figures import rows_figure
from workloads.grid import is_whole_png

SAMPLES_WIDTH_PX, SAMPLES_MAX_PX = 990, 1_980


def write_comparison_report(name: str, runs_dir: Path, out: Path | None) -> Path:
    """Write the page and return where it is, NAME.html in the runs directory by default. ConfigError if the table is
    not one of a comparison.
    """
    runs = RunsDir(runs_dir)
    return write_page("comparison.html.j2", ComparisonPage(name, runs), out or runs.page(name))


class ComparisonPage:
    """What the template asks for."""

    def __init__(self, name: str, runs: RunsDir) -> None:
        self.name, self._file, self._samples = name, runs.table(name), runs.picture(name)
        self._lines = read_table(self._file)
        self._figures: dict[str, dict[str, list[float]]] = {}
        for line in self._lines:
            row = self._figures.setdefault(line["row"], {})
            for column, figure in figures_of(line).items():
                row.setdefault(column, []).append(figure)
        self._shown = shown_columns(self._figures.values())
        self.runs = [line["run"] for line in self._lines]
        self.doubts = [
            f"{line['row']}, seed {line['seed']}, is not trustworthy: {line['doubts']}"
            for line in self._lines
            if line["doubts"]
        ]

    @property
    def lead(self) -> str:
        """Who is ahead."""
        means = {row: sum(values["score"]) / len(values["score"]) for row, values in self._figures.items()}
        best = min(means, key=means.__getitem__)
        num_seeds = max(len(values["score"]) for values in self._figures.values())
        return (
            f"{len(means)} rows over {num_seeds} seed{'s' if num_seeds > 1 else ''}, under one protocol (hash "
            f"{self._lines[0]['protocol_hash'][:8]}). The lowest mean score has {best}: "
            f"{cell('score', self._figures[best])}. A difference inside its own 95 % interval is a tie."
        )

    @property
    def columns(self) -> list[str]:
        """Headings."""
        return [COLUMNS[name] or "score" for name in self._shown]

    @property
    def rows(self) -> list[tuple[str, list[tuple[str, float | str]]]]:
        """Each with what is shown and by what it is sorted."""
        return [(row, [_shown(name, values) for name in self._shown]) for row, values in self._figures.items()]

    @property
    def note(self) -> str:
        """How to read the table."""
        return (
            "Mean over seeds +- half of its 95 % interval, over the draw of the samples and over seeds. Distances "
            "(score, sFID, KID): lower is better; IS, precision and recall: higher is."
        )

    @property
    def table_source(self) -> str:
        """The whole table, a line per row and seed."""
        return csv_uri(self._file.read_text())

    @property
    def picture(self) -> Picture:
        """Every score."""
        scores: Mapping[str, Sequence[float]] = {row: values["score"] for row, values in self._figures.items()}
        table = Table(("row", "seed", "score"), [(line["row"], line["seed"], line["score"]) for line in self._lines])
        caption = "A dot is a seed, the bar their mean; lower is better."
        return picture_of(rows_figure(scores, "score"), "score of each row and seed", caption, scores=table)

    @property
    def samples(self) -> Picture | None:
        """Of every row, with equal noise and classes."""
        if not self._samples.is_file() or not is_whole_png(content := self._samples.read_bytes()):
            return None
        alt = f"samples, a row of images for each of {', '.join(self._figures)}"
        caption = f"From the top: {', '.join(self._figures)}; equal noise and classes."
        return stored_picture(content, alt, caption, width_px=SAMPLES_WIDTH_PX, max_px=SAMPLES_MAX_PX)


def _shown(name: str, figures: Mapping[str, Sequence[float]]) -> tuple[str, float | str]:
    mean = sum(figures[name]) / len(figures[name])
    return cell(name, figures), "" if math.isnan(mean) else mean

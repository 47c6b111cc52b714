"""Pages about a run and about a comparison: the numbers on disk, escaped, small, and nothing loaded from elsewhere."""

import csv
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from orchestrator.plan import events
from orchestrator.plan.jobs import Plan, make_plan
from orchestrator.plan.places import RunsDir
from orchestrator.plan.policies import FailureKind
from orchestrator.runs.comparing.output import ComparisonRow, print_comparison, write_comparison
from orchestrator.runs.comparing.table import COLUMNS, ERRORS, SCORES, cell
from orchestrator.runs.configuration import Outcome
from orchestrator.runs.status import StatusFile
from orchestrator.runs.stored import find_planned
from orchestrator.search.report.find import bring_reported, write_report_of
from orchestrator.search.report.pictures import stored_picture
from orchestrator.store.storage import Storage
from workloads.config import DataSpec, RunConfig
from workloads.config.load import load_comparison
from workloads.errors import ConfigError
from workloads.evaluation.protocol import Score
from workloads.places import RunDir
from workloads.sealed import sealed, write_json
from workloads.training.result import JobResult

DATA = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(RunConfig.model_validate(tiny_run), DATA)


@pytest.fixture
def run(plan: Plan, tmp_path: Path) -> RunDir:
    """A run with everything that a page shows."""
    runs, run = RunsDir(tmp_path / "runs"), RunDir(tmp_path / "runs" / "tiny-12345678")
    with StatusFile(run, "meme", plan.jobs) as status:
        for event in (
            events.Starting(plan.jobs[1].key),
            events.Training(plan.jobs[1].key),
            events.Restarting(plan.jobs[1].key, FailureKind.PREEMPTED, 2),
        ):
            status(event)
    write_json(run.plan, plan.to_json())
    run.config.write_text(f"name: tiny # {HOSTILE}\n")
    for number, job in enumerate(plan.jobs[:3]):
        result = JobResult(job.key, 1024, 0.5 + number / 8, 61.0, 1, "expert/x", "0" * 64, ((1, 0.5),))
        write_json(runs.job(job.key).result, asdict(result))
    score = Score("fid", 12.5, {"name": HOSTILE}, "a" * 16, 1000, {"kid": 0.25}, stderr=0.5)
    write_json(run.scores, {score.protocol_hash: sealed(asdict(score))})
    run.figures.mkdir()
    for file in (run.grid, run.figure("training_loss"), run.figure("new_figure")):
        Image.new("RGB", (8, 8), "green").save(file)
    run.figure_table("training_loss").write_text("expert,images_seen,loss\n0,64,0.5\n")
    return run


def test_a_run_has_a_page_with_what_is_on_disk(run: RunDir, plan: Plan) -> None:
    file = write_report_of("tiny", run.path.parent, None)
    assert file == run.report
    page = file.read_text()
    assert "fid is 12.5 ± 0.98 over 1,000 samples" in page
    assert "11.52 to 13.48" in page
    for job in plan.jobs:
        assert f'data-v="{job.name}"' in page
        assert f'data-v="{job.num_parameters}"' in page
    assert page.count(">1:01</td>") == 3
    assert "1 x its node was preempted" in page
    assert page.count("<img ") == page.count('alt="') == 3
    assert 'download="training_loss.csv"' in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("<h1>") == 1


def test_a_run_is_found_by_its_directory_and_names(run: RunDir, tmp_path: Path) -> None:
    runs = RunsDir(run.path.parent)
    for named in (str(run.path), "tiny-12345678", "tiny"):
        found = find_planned(named, runs)
        assert found is not None
        assert found.path == run.path
    out = tmp_path / "page.html"
    assert write_report_of(str(run.path), tmp_path / "elsewhere", out) == out
    for named in ("other", "../runs", ""):
        with pytest.raises(ConfigError, match=r"no study, comparison or run .*; there: tiny-12345678"):
            write_report_of(named, run.path.parent, None)


def test_a_run_is_reported_from_a_storage(run: RunDir, tmp_path: Path) -> None:
    uri = (tmp_path / "storage").as_uri()
    Storage.at(uri).keep_run(run)
    elsewhere = tmp_path / "elsewhere"
    page = write_report_of(bring_reported("tiny", elsewhere, uri), elsewhere, None)
    assert page == elsewhere / "tiny-12345678" / "report.html"
    assert "fid is 12.5 ± 0.98 over 1,000 samples" in page.read_text()
    with pytest.raises(ConfigError, match=r"no run 'other' in .*; there are tiny-12345678"):
        bring_reported("other", elsewhere, uri)


def test_a_run_that_has_only_been_planned_has_a_page(plan: Plan, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "tiny-12345678")
    run.path.mkdir()
    write_json(run.plan, plan.to_json())
    assert "It has not been scored yet." in write_report_of("tiny", tmp_path, None).read_text()


def test_a_large_picture_is_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    picture = stored_picture((tmp_path / "large.png").read_bytes(), "noise", width_px=640)
    assert len(picture.source) < 1_500_000 < (tmp_path / "large.png").stat().st_size


def write_table(file: Path, **changes: str) -> dict[str, list[float]]:
    """Two rows of two seeds; returns their scores."""
    scores = {"base": [3.0, 5.0], HOSTILE: [2.0, 3.0]}
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, ["row", "seed", "run", "protocol_hash", "num_experts", *COLUMNS, "doubts"])
        writer.writeheader()
        for row, values in scores.items():
            for seed, value in enumerate(values):
                line = dict.fromkeys(COLUMNS, "1.0") | {"row": row, "seed": seed, "run": f"{row}-{seed}"}
                line |= {"protocol_hash": "a" * 64, "num_experts": 1, "score": value, "recall": "nan", "doubts": ""}
                writer.writerow(line | (changes if seed else {}))
    return scores


def test_a_comparison_has_a_page(tmp_path: Path) -> None:
    scores = write_table(RunsDir(tmp_path).table("mine"), doubts="only 3 samples")
    file = write_report_of("mine", tmp_path, None)
    assert file == RunsDir(tmp_path).page("mine")
    page = file.read_text()
    for values in scores.values():
        mean, error = statistics.mean(values), scipy.stats.sem(values)
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
        assert f"{mean:.4g} +- {(high - low) / 2:.2g}" in page
    assert "The lowest mean score has &lt;script&gt;" in page
    assert HOSTILE not in page
    assert page.count("is not trustworthy: only 3 samples") == 2
    assert page.count('download="') == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol_hash": "b" * 64}, "it has scores of 2 protocols"),
        ({"score": "much"}, "it is not the table of a comparison"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    write_table(RunsDir(tmp_path).table("mine"), **changes)
    with pytest.raises(ConfigError, match=said):
        write_report_of("mine", tmp_path, None)
    RunsDir(tmp_path).table("empty").write_text("")
    with pytest.raises(ConfigError, match="it is not the table of a comparison"):
        write_report_of("empty", tmp_path, None)


def scored(plan: Plan, run: Path, value: float, others: Mapping[str, float], **more: Any) -> Outcome:
    """A trained configuration with a score whose standard error is 0.5, and metrics whose is a tenth of them."""
    protocol = {"name": "small", "num_samples": 1000}
    errors = {name: 0.1 * other for name, other in others.items()}
    score = Score("fid", value, protocol, "c" * 16, 1000, dict(others), stderr=0.5, others_stderr=errors, **more)
    return Outcome(plan, RunDir(run), (), score)


@pytest.mark.parametrize(("asked", "heading", "not_asked"), [("kid", "KID", "sFID"), ("sfid", "sFID", "KID")])
def test_every_metric_of_a_comparison_is_told_with_its_interval(
    asked: str, heading: str, not_asked: str, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal, in the file and on the page; over seeds, and over samples where there is one seed."""
    comparison = load_comparison("remix-table1-small", ["seeds=[0, 1]"])
    metrics = {"inception_score": (4.0, 5.0), "precision": (0.6, 0.7), "recall": (0.2, 0.3), asked: (0.011, 0.013)}
    values = {"score": (9.0, 11.0), **metrics}
    outcomes = [
        scored(plan, tmp_path / f"a-{seed}", values["score"][seed], {name: metrics[name][seed] for name in metrics})
        for seed in (0, 1)
    ]
    missing = {"inception_score": "these weights have no classes"}
    bare = [scored(plan, tmp_path / "b", 12.0, {}, unavailable=missing, doubts=["8 samples are too few"])] * 2
    rows = []
    for name, both in (("independent-8", outcomes), ("continued", bare)):
        figures = dict.fromkeys([*COLUMNS, *ERRORS.values()], (math.nan, math.nan))
        figures |= {one: (123456.0, 234567.0) for one in COLUMNS if one not in SCORES}
        if name == "independent-8":
            figures |= values | {ERRORS[one]: (0.1, 0.1) for one in values}
        else:
            figures |= {"score": (12.0, 12.0), ERRORS["score"]: (0.5, 0.5)}
        rows.append(ComparisonRow(name, both, figures))
    print_comparison(comparison, rows)
    printed = capsys.readouterr().out
    write_comparison(RunsDir(tmp_path).table("mine"), comparison, rows)
    page = write_report_of("mine", tmp_path, None).read_text()
    for pair in values.values():
        half = scipy.stats.t.ppf(0.975, 1) * statistics.stdev(pair) / math.sqrt(2)
        for told in (printed, page):
            assert f"{statistics.mean(pair):.4g} +- {half:.2g}" in told
    assert heading in printed
    assert not_asked not in printed
    assert "…" not in printed  # however many columns there are
    assert "n/a: inception_score of continued: these weights have no classes" in printed
    assert "continued is not trustworthy: 8 samples are too few" in printed
    assert "continued, seed 0, is not trustworthy: 8 samples are too few" in page
    alone = {name: pair[:1] for name, pair in rows[0].figures.items()}
    assert cell(asked, alone) == f"0.011 +- {scipy.stats.norm.ppf(0.975) * 0.1:.2g}"

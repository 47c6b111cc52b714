"""The report says what the ledger holds: winners, ties, correlations, costs; and refuses what cannot be compared."""

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from orchestrator.plan.places import RunsDir
from orchestrator.search.inference.importance import importances
from orchestrator.search.report import words
from orchestrator.search.report.page import Page, write_report
from orchestrator.search.running.csv_file import write_csv
from orchestrator.search.running.display import print_study
from orchestrator.search.space.columns import columns
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, UsedJob, is_tied, ranked
from workloads.config import Interval
from workloads.errors import ConfigError
from workloads.evaluation.estimates import Estimate

SPACE = {"training.learning_rate": {"choice": [0.1, 0.2]}, "strategy.cuts": {"boundaries": {}}}
DESCRIPTION: dict[str, Any] = {
    "name": "s",
    "space": SPACE,
    "num_timesteps": 1000,
    "evaluation": {"name": "demo", "sampling": {"sampler": "ddim", "num_steps": 16}},
    "quick": {"name": "demo-quick", "sampling": {"sampler": "ddim", "num_steps": 8}},
    "ladder": {"held_out": {"num_images": 32, "num_bins": 8}},
}
LOSSES = [0.30, 0.20, 0.25, 0.40, 0.35, 0.10]
SCORES = [3.00, 2.00, 2.10, 4.00, 5.00, 1.00]


def job(key: str, lo: int, hi: int, *, trained: bool) -> UsedJob:
    place = {"key": key, "name": key, "interval": Interval(lo, hi), "architecture": key, "label": f"share {key}"}
    return UsedJob.model_validate({**place, "images": 100, "num_parameters": 5, "macs": 7, "trained": trained})


def trial(number: int, **changes: Any) -> Trial:
    """Two experts, the first of which is the same in all."""
    quick = Rung(
        name="quick", value=SCORES[number], stderr=0.02, score_name="fid", protocol_hash="q" * 64, num_samples=400
    )
    given = {
        "number": number,
        "values": {"training.learning_rate": 0.1 + number / 100, "strategy.cuts": [100 * (number + 1)]},
        "state": "finished",
        "runs": (f"run-{number}",),
        "rungs": (Rung(name="loss", value=LOSSES[number]), quick),
        "jobs": (job("a", 0, 100, trained=number == 0), job(f"b{number}", 100, 1000, trained=True)),
        "num_parameters": 10 * (6 - number),
        "macs": 1000.0 * (6 - number),
        "elapsed_s": 10.0,
    }
    return Trial.model_validate(given | changes)


def full(value: float, stderr: float) -> Rung:
    return Rung(name="full", value=value, stderr=stderr, score_name="fid", protocol_hash="f" * 64, num_samples=1000)


def page_of(folder: Path, trials: list[Trial]) -> Page:
    return Page(RunsDir(folder), "s", DESCRIPTION, trials)


class Text(HTMLParser):
    """What a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def __str__(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def written(folder: Path, trials: list[Trial]) -> str:
    ledger = Ledger(RunsDir(folder), "s")
    ledger.begin(DESCRIPTION)
    for one in trials:
        ledger.write(one)
    return write_report(folder, "s", None).read_text()


def test_the_page_names_the_winner_its_protocol_and_what_reuse_saved(tmp_path: Path) -> None:
    page = written(tmp_path, [trial(number) for number in range(6)])
    seen = str(Text(page))
    assert "The best is #5 (learning_rate 0.15, cuts [600])" in seen
    assert "fid_quick 1 (95 % interval 0.9608 to 1.039)" in seen
    assert "protocol hash qqqqqqqq" in seen
    # Seven networks of 100 images in twelve places.
    assert "12 experts together: 7 were trained for it and 5 reused" in seen
    assert "a factor of 1.71 saved" in seen
    assert "demo-quick, 400 samples, ddim with 8 steps" in seen
    assert page.count("data:image/png;base64,") >= 4
    assert 'src="http' not in page
    assert not re.search(r'href="(?!data:text/csv)', page)


def numbers_of(page: str) -> dict[str, list[dict[str, str]]]:
    """Rows of every CSV file in the page, by name."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(text).decode()))) for name, text in found}


def test_every_figure_comes_with_its_numbers(tmp_path: Path) -> None:
    trials = [trial(number, macs=1000.0 * (number + 1), predicted_loss=LOSSES[number] / 2) for number in range(6)]
    page = written(tmp_path, trials)
    tables = numbers_of(page)
    assert len(tables) == page.count('<figure class="plot">') == 6
    front = {int(row["configuration"]): row for row in tables["score_macs.csv"]}
    assert {number: (float(row["fid_quick"]), float(row["macs"])) for number, row in front.items()} == {
        number: (SCORES[number], 1000.0 * (number + 1)) for number in range(6)
    }
    assert [number for number in sorted(front) if front[number]["on_front"] == "True"] == [0, 1, 5]
    assert sum(float(row["share"]) for row in tables["importance.csv"]) == pytest.approx(1)
    rates = {row["configuration"]: row["learning_rate"] for row in tables["parameters.csv"]}
    assert rates == {str(number): str(0.1 + number / 100) for number in range(6)}
    guides = [(float(row["value_x"]), float(row["value_y"])) for row in tables["guides.csv"]]
    assert sorted(guides) == sorted(zip(LOSSES, SCORES, strict=True))
    guides = [(float(row["value_x"]), float(row["value_y"])) for row in tables["predictions.csv"]]
    assert sorted(guides[:6]) == sorted((loss / 2, loss) for loss in LOSSES)
    spans = [(row["from_timestep"], row["to_timestep"]) for row in tables["boundaries.csv"]]
    assert spans == [("0", "100"), ("100", "1000")] * 6


def test_a_dearer_score_comes_first_and_ties_are_named(tmp_path: Path) -> None:
    trials = [trial(number) for number in range(6)]
    for number, value in ((1, 2.6), (2, 2.5)):  # differ by 0.1, and the interval of the difference is 0.139
        trials[number] = trial(number, rungs=(*trials[number].rungs, full(value, 0.05)))
    page = page_of(tmp_path, trials)
    assert [one.number for one in page.best] == [2, 1, 5, 0, 3, 4]
    # #5 has no full score, so the quick scores decide: 2.1 against 1.0.
    assert [one.number for one in page.tied] == [1]
    assert page.top_rung == trials[2].rung("full")


def test_other_metrics_stand_wherever_the_score_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"kid": Estimate(0.0125, 0.001), "recall": Estimate(0.5, 0.02)}
    first = trial(0)
    with_others = first.rungs[1].model_copy(update={"others": others, "unavailable": {"inception_score": "no weights"}})
    trials = [first.with_rung(with_others), trial(1)]
    seen = str(Text(written(tmp_path, trials)))
    assert "0.0125 ± 0.002" in seen
    assert "0.5 ± 0.039" in seen
    # The ledger gives back what it was given.
    assert Ledger(RunsDir(tmp_path), "s").trials()[0] == trials[0]
    space = {"training.learning_rate": {"choice": [0.1, 0.2]}}
    ladder = {"quick": {"num_samples": 10}, "held_out": {}}
    raw = {"name": "s", "base": "demo-meme", "space": space, "sampler": "grid", "ladder": ladder}
    study = Study.model_validate(raw)
    write_csv(tmp_path / "s.csv", study, trials)
    with (tmp_path / "s.csv").open() as file:
        best, other = csv.DictReader(file)
    assert (best["quick_kid"], other["quick_kid"]) == ("", "0.0125")
    assert other["quick_recall_stderr"] == "0.02"
    assert other["protocol_hash"] == "q" * 64
    print_study(study, trials)
    assert "0.0125 +- 0.002" in capsys.readouterr().out


def test_rank_correlations_are_scipys(tmp_path: Path) -> None:
    page = page_of(tmp_path, [trial(number, predicted_loss=LOSSES[number] ** 2) for number in range(6)])
    _, said = page.ladder
    assert f"rank correlation {spearmanr(LOSSES, SCORES).statistic:.2f} over 6 configurations: good" in said[0]
    _, said = page.forecast
    assert "rank correlation 1.00 over 6" in said[0]
    backwards = page_of(tmp_path, [trial(number, predicted_loss=-LOSSES[number]) for number in range(6)])
    assert "the prediction was poor" in backwards.forecast[1][0]


def test_the_front_and_its_knee(tmp_path: Path) -> None:
    """MACs fall with the number: all those that a later and better one does not beat."""
    page = page_of(tmp_path, [trial(number) for number in range(6)])
    ((_, said),) = page.fronts
    assert said.startswith("1 of 6 configurations are on the front")
    trials = [trial(number, macs=1000.0 * (number + 1)) for number in range(6)]
    ((_, said),) = page_of(tmp_path, trials).fronts
    # 3.0 at 1k, 2.0 at 2k, 1.0 at 6k; the line from (3, 1) to (1, 6) runs farthest above (2, 2).
    assert said.startswith("3 of 6")
    assert "is #1 (" in said


def test_errors_are_escaped_and_failures_listed(tmp_path: Path) -> None:
    failed = trial(3, state="failed", rungs=(), error="loss is <b>nan</b>")
    page = written(tmp_path, [trial(0), failed])
    assert "loss is &lt;b&gt;nan&lt;/b&gt;" in page
    assert "1 finished, 1 failed" in str(Text(page))


@pytest.mark.parametrize("number", [0, 1])
def test_a_study_that_has_hardly_begun_has_a_page(tmp_path: Path, number: int) -> None:
    seen = str(Text(written(tmp_path, [trial(index) for index in range(number)])))
    assert ("Nothing has been scored yet" in seen) is (number == 0)


def test_scores_of_two_protocols_are_refused(tmp_path: Path) -> None:
    other = Rung(name="quick", value=1.0, score_name="fid", protocol_hash="x" * 64, num_samples=10)
    with pytest.raises(ConfigError, match="quick scores of 2 protocols"):
        page_of(tmp_path, [trial(0), trial(1, rungs=(other,))])


def test_what_decides_the_score_is_important() -> None:
    grid = [(float(a), float(b)) for a in range(4) for b in range(4)]
    varying = columns([{"a": a, "b": b, "c": f"{a:g}"} for a, b in grid])
    assert set(varying) == {"a", "b", "c"}
    found = importances({name: varying[name] for name in ("a", "b")}, [10 * a for a, _ in grid])
    assert isinstance(found, dict)
    assert next(iter(found)) == "a"
    assert found["a"] > 0.95
    assert sum(found.values()) == pytest.approx(1)


def test_columns_that_always_agree_are_one() -> None:
    shares = ["strategy.experts.0.model.attention_share.0", "strategy.experts.0.model.attention_share.1"]
    points: list[dict[str, float | str]] = [{shares[0]: x, shares[1]: x, "fixed": 1.0} for x in (0.25, 0.75)]
    assert columns(points) == {"expert 0 attention_share": [0.25, 0.75]}
    points[0][shares[1]] = 0.5
    assert set(columns(points)) == {"expert 0 attention_share 0", "expert 0 attention_share 1"}


@pytest.mark.parametrize(
    ("varying", "scores", "expected"),
    [
        ({"a": [1.0, 2.0]}, [1.0, 2.0], "too few"),
        ({}, [1.0, 2.0, 3.0, 4.0], "varies"),
        ({"a": [1.0, 2.0, 3.0, 4.0]}, [1.0] * 4, "All scores are equal"),
    ],
)
def test_what_cannot_be_told_is_said(varying: Any, scores: list[float], expected: str) -> None:
    found = importances(varying, scores)
    assert isinstance(found, str)
    assert expected in found


def test_a_score_that_is_not_to_be_trusted_has_no_rank(capsys: pytest.CaptureFixture[str]) -> None:
    doubted = full(19.9, 1.0).model_copy(update={"doubts": ("only 3 samples",)})
    good, bad = trial(1, rungs=(full(20.0, 1.0),)), trial(2, rungs=(doubted,))
    assert ranked([bad, good], ["full"]) == [good, bad]
    assert not is_tied(good, bad, ["full"])
    assert "not trustworthy" in words.score(bad.rung("full"))
    study = Study.model_validate(
        {"name": "x", "base": "demo-meme", "space": {"training.learning_rate": {"choice": [1]}}, "sampler": "grid"}
    )
    print_study(study, [bad, good])
    assert "? is not trustworthy, and has no rank: only 3 samples" in capsys.readouterr().out

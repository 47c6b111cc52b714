"""The table of benchmarks: what it says of figures, goals and absent peers."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import HERE, command_of, lines, verdict
from benchmarks.rows import BENCHES, Row, found

REPORT: dict[str, Any] = {"ratio": {"plain over public DiT": {"median": 0.75, "least": 0.7, "most": 0.8}}, "limit": 0.9}


@pytest.mark.parametrize(
    ("figure", "value"),
    [(("limit",), 0.9), (("ratio", "plain over public DiT", "most"), 0.8), (("ratio", "none"), None), (("no",), None)],
)
def test_a_figure_is_found_by_its_names(figure: tuple[str, ...], value: float | None) -> None:
    assert found(REPORT, figure) == value


@pytest.mark.parametrize(
    ("row", "value", "said"),
    [
        (Row("a", (), 1.0), 1.0, "<= 1"),
        (Row("a", (), 1.0), 1.01, "<= 1 (missed)"),
        (Row("a", (), 0.7, True), 0.7, ">= 0.7"),
        (Row("a", (), 0.7, True), 0.69, ">= 0.7 (missed)"),
        (Row("a", ()), 3.0, ""),
    ],
)
def test_a_goal_is_the_most_or_the_least_that_will_do(row: Row, value: float, said: str) -> None:
    assert verdict(row, value) == said


def test_the_table_says_what_was_measured_and_which_peer_was_absent() -> None:
    table = lines({"step": {"report": REPORT}})
    (of_public,) = [line for line in table if line.startswith("| step of DiT-S/2 over the public DiT's")]
    assert "| 0.75 (0.7 - 0.8) | <= 0.8 | public DiT |" in of_public
    of_remix = [line for line in table if "over the public Remix-DiT's" in line]
    assert of_remix
    assert all("| peer absent |" in line for line in of_remix)
    told = lines({"step": {"report": REPORT, "peers": True}})  # measured before there was such a row
    assert not any("peer absent" in line for line in told)
    num_others = sum(len(bench.rows) for bench in BENCHES if bench.name != "step")
    assert sum("| not measured |" in line for line in table) >= num_others


def test_every_bench_is_a_script_that_is_told_of_checkouts_if_it_takes_them() -> None:
    for bench in BENCHES:
        assert (HERE.parent / bench.arguments[0]).is_file()
        assert ("--peers" in command_of(bench, Path("there"))) == bench.takes_peers
        assert command_of(bench, None) == list(bench.arguments)

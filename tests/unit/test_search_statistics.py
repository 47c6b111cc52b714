"""Ranks, ties, fronts and knees against closed forms and enumeration."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.inference.statistics import knee, pareto_front, rank_correlation
from workloads.evaluation.estimates import Estimate, over_seeds, tied

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    for index, (x, y) in enumerate(points):
        beaten = any((a < x and b <= y) or (a <= x and b < y) for a, b in points)
        assert (index in front) is not beaten
    assert [points[index] for index in front] == sorted(points[index] for index in front)


def test_the_knee_is_farthest_from_the_line_between_the_ends() -> None:
    front = [(1.0, 10.0), (1.2, 4.0), (3.0, 3.0), (5.0, 0.0)]

    def below(point: tuple[float, float]) -> float:
        x, y = (point[0] - 1) / 4, point[1] / 10
        return (1 - x - y) / math.sqrt(2)

    assert knee(front) == max(range(4), key=lambda index: below(front[index])) == 1
    assert knee([front[3], front[1], front[0], front[2]]) == 1
    assert knee([(2.0, 1.0)]) == 0
    assert knee([(2.0, 1.0), (1.0, 2.0)]) == 1


def test_rank_correlation_without_ties_is_the_textbook_formula() -> None:
    rng = random.Random(0)
    a = rng.sample(range(100), 20)
    b = rng.sample(range(100), 20)
    rank_a, rank_b = ([sorted(values).index(value) for value in values] for values in (a, b))
    d2 = sum((x - y) ** 2 for x, y in zip(rank_a, rank_b, strict=True))
    assert rank_correlation(a, b) == pytest.approx(1 - 6 * d2 / (20 * (20**2 - 1)))
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_tie_is_a_difference_inside_its_interval() -> None:
    a = Estimate(10.0, 0.3)
    half = 1.96 * 0.5  # sqrt(0.3^2 + 0.4^2) = 0.5
    assert tied(a, Estimate(10 + half - 1e-9, 0.4))
    assert not tied(a, Estimate(10 + half + 1e-9, 0.4))
    assert tied(Estimate(1.0), Estimate(1.0))
    assert not tied(Estimate(1.0), Estimate(1.1))
    assert a.interval == pytest.approx((10 - 0.588, 10 + 0.588))


def test_the_mean_over_seeds_has_both_kinds_of_error() -> None:
    one = Estimate(3.0, 0.1)
    assert over_seeds([one]) is one
    together = over_seeds([Estimate(3.0, 0.1), Estimate(5.0, 0.3)])
    assert together.value == 4.0
    assert together.stderr == pytest.approx(math.sqrt(((0.01 + 0.09) / 2 + 2.0) / 2))

"""The best assignments against enumeration of everything."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.inference.assignment import Architecture, Limits, Measured, best_assignments, predicted_loss
from workloads.analysis.curves import LossCurve
from workloads.config import Interval, IntervalTable
from workloads.errors import ConfigError

T = 40
EDGES = (0, 7, 20, 33, T)
POSITIONS = (10, 20, 30)
LOSSES = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)
SPANS = st.sampled_from([(0, T), (0, 10), (0, 20), (10, 30), (20, T), (30, T)])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Measured], dict[str, Architecture]]:
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    costs = {
        name: Architecture(draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.floats(0.1, 1))) for name in names
    }
    measured = [
        Measured(name, Interval(*draw(SPANS)), LossCurve(EDGES, tuple(draw(LOSSES))))
        for name in names
        for _ in range(draw(st.integers(1, 3)))
    ]
    return measured, costs


def brute_loss(measured: Sequence[Measured], table: IntervalTable, names: Sequence[str]) -> float:
    """Timestep by timestep."""
    total = 0.0
    for interval, name in zip(table, names, strict=True):
        ours = set(range(*interval))

        def rank(one: Measured, ours: set[int] = ours) -> tuple[float, int, int]:
            theirs = set(range(*one.interval))
            return -len(ours & theirs) / len(ours | theirs), len(theirs), one.interval.lo

        stand_in = min((one for one in measured if one.architecture == name), key=rank)
        for t in ours:
            place = next(index for index in range(len(EDGES) - 1) if EDGES[index] <= t < EDGES[index + 1])
            total += stand_in.curve.losses[place]
    return total / T


def enumerate_all(
    measured: Sequence[Measured], costs: dict[str, Architecture], counts: Sequence[int], limits: Limits
) -> list[float]:
    """Losses of everything within the limits, rising."""
    losses = []
    for count in counts:
        for cuts in itertools.combinations(POSITIONS, count - 1):
            table = IntervalTable(cuts, T)
            for names in itertools.product(sorted(costs), repeat=count):
                shares = [interval.num_timesteps / T for interval in table]
                parameters = sum(costs[name].num_parameters for name in names)
                macs = sum(share * costs[name].macs for share, name in zip(shares, names, strict=True))
                seconds = sum(share * (costs[name].latency_s or 0) for share, name in zip(shares, names, strict=True))
                used = ((parameters, limits.num_parameters), (macs, limits.macs), (seconds, limits.latency_s))
                if all(bound is None or value <= bound * (1 + 1e-12) for value, bound in used):
                    losses.append(brute_loss(measured, table, names))
    return sorted(losses)


@given(
    problems(),
    st.sampled_from([(1,), (2,), (3,), (1, 2, 4)]),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(2, 20)),
    st.one_of(st.none(), st.floats(1, 8)),
    st.one_of(st.none(), st.floats(0.2, 1)),
)
@settings(max_examples=60, deadline=None)
def test_the_best_are_those_of_enumeration(
    problem: tuple[list[Measured], dict[str, Architecture]],
    counts: tuple[int, ...],
    num_best: int,
    num_parameters: int | None,
    macs: float | None,
    latency_s: float | None,
) -> None:
    measured, costs = problem
    limits = Limits(num_parameters, macs, latency_s)
    expected = enumerate_all(measured, costs, counts, limits)[:num_best]

    def plan() -> list[float]:
        found = best_assignments(
            measured,
            costs,
            num_timesteps=T,
            positions=POSITIONS,
            num_experts=counts,
            limits=limits,
            num_best=num_best,
        )
        for one in found:
            table = IntervalTable(one.cuts, T)
            assert one.predicted_loss == pytest.approx(brute_loss(measured, table, one.architectures), abs=1e-12)
            assert predicted_loss(measured, table, one.architectures) == pytest.approx(one.predicted_loss, abs=1e-12)
            assert num_parameters is None or one.num_parameters <= num_parameters
            assert macs is None or one.macs <= macs * (1 + 1e-9)
        return [one.predicted_loss for one in found]

    if expected:
        assert plan() == pytest.approx(expected, abs=1e-12)
    else:
        with pytest.raises(ConfigError, match="limits"):
            plan()


def flat(name: str, loss: float) -> Measured:
    return Measured(name, Interval(0, T), LossCurve((0, T), (loss,)))


def test_impossible_limits_say_what_is_possible() -> None:
    costs = {"a": Architecture(100, 7), "b": Architecture(60, 9)}
    measured = [flat("a", 1), flat("b", 2)]
    options = {"num_timesteps": T, "positions": POSITIONS, "num_experts": [2]}
    with pytest.raises(ConfigError, match="num_parameters is 100, but no configuration has less than 120"):
        best_assignments(measured, costs, limits=Limits(num_parameters=100), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="macs is 5, but no configuration has less than 7"):
        best_assignments(measured, costs, limits=Limits(macs=5), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be met together"):
        best_assignments(measured, costs, limits=Limits(num_parameters=130, macs=7.5), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 experts do not fit on 3 places"):
        best_assignments(measured, costs, num_timesteps=T, positions=POSITIONS, num_experts=[5])


def test_an_architecture_nobody_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="architecture b was measured"):
        predicted_loss([flat("a", 1)], IntervalTable((10,), T), ["a", "b"])

"""Boundaries and architectures from measured losses: denoising loss is additive over timesteps, so a dynamic programme
finds the assignment of intervals and architectures that is predicted to be best, exactly. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workloads.analysis.curves import LossCurve
from workloads.config import Interval, IntervalTable
from workloads.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """A trained network whose held-out loss is known at every timestep."""

    architecture: str
    interval: Interval
    """What it was trained for."""

    curve: LossCurve


@dataclass(frozen=True)
class Architecture:
    """What a network of it costs."""

    num_parameters: int
    macs: int
    latency_s: float | None = None


@dataclass(frozen=True)
class Limits:
    """Stored parameters of all networks; mean multiply-adds and mean seconds of a denoising step, steps spread evenly
    over t."""

    num_parameters: float | None = None
    macs: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Assignment:
    """Who is in charge where, and what to expect of it."""

    cuts: tuple[int, ...]
    architectures: tuple[str, ...]
    predicted_loss: float
    num_parameters: int
    macs: float
    latency_s: float | None


def predicted_loss(measured: Sequence[Measured], table: IntervalTable, architectures: Sequence[str]) -> float:
    """Mean over all timesteps of the owner's loss, as the network of its architecture that was trained for the most
    similar interval has it."""
    parts = zip(table, architectures, strict=True)
    return sum(
        interval.num_timesteps * _stand_in(measured, name, interval).curve.mean(interval) for interval, name in parts
    ) / (table.num_timesteps)


def _stand_in(measured: Sequence[Measured], architecture: str, interval: Interval) -> Measured:
    """The measured network most like one trained for the interval: largest intersection over union, then narrowest."""
    known = [one for one in measured if one.architecture == architecture]
    if not known:
        raise ConfigError(f"no network of architecture {architecture} was measured; search with it first")

    def unlikeness(one: Measured) -> tuple[float, int, int]:
        common = max(0, min(one.interval.hi, interval.hi) - max(one.interval.lo, interval.lo))
        union = one.interval.num_timesteps + interval.num_timesteps - common
        return -common / union, one.interval.num_timesteps, one.interval.lo

    return min(known, key=unlikeness)


class _Partial(NamedTuple):
    """A partial assignment up to some timestep, as sums over timesteps."""

    loss: float
    num_parameters: int
    macs: float
    latency_s: float
    cuts: tuple[int, ...]
    architectures: tuple[str, ...]


def best_assignments(
    measured: Sequence[Measured],
    architectures: Mapping[str, Architecture],
    *,
    num_timesteps: int,
    positions: Sequence[int],
    num_experts: Sequence[int],
    limits: Limits = Limits(),
    num_best: int = 1,
) -> list[Assignment]:
    """The num_best assignments of lowest predicted loss with cuts at `positions`, best first.

    Exact: a partial assignment is dropped only if num_best others that end at the same timestep with as many experts
    are as good in loss and in everything limited. ConfigError if none keeps the limits.
    """
    ends = [*sorted(positions), num_timesteps]
    steps = {
        # Sorted by name, so that equal losses are settled alike on every machine.
        (lo, hi): [_step(measured, architectures[name], name, Interval(lo, hi)) for name in sorted(architectures)]
        for index, hi in enumerate(ends)
        for lo in (0, *ends[:index])
    }
    # By the timestep and the number of experts a partial assignment ends with.
    states: dict[tuple[int, int], list[_Partial]] = {(0, 0): [_Partial(0.0, 0, 0.0, 0.0, (), ())]}
    for hi in ends:
        for count in range(1, max(num_experts) + 1):
            partials = [
                _extended(partial, step, hi)
                for lo in (0, *(end for end in ends if end < hi))
                for partial in states.get((lo, count - 1), ())
                for step in steps[lo, hi]
            ]
            states[hi, count] = _undominated(partials, num_best, limits, num_timesteps)
    found = [partial for count in num_experts for partial in states.get((num_timesteps, count), ())]
    if not found:
        raise ConfigError(_why_none(architectures, ends, num_experts, limits))
    found.sort(key=lambda partial: (partial.loss, partial.cuts, partial.architectures))
    return [_assignment(partial, num_timesteps, architectures) for partial in found[:num_best]]


def _step(measured: Sequence[Measured], cost: Architecture, name: str, interval: Interval) -> _Partial:
    number, mean = interval.num_timesteps, _stand_in(measured, name, interval).curve.mean(interval)
    latency_s = number * (cost.latency_s or 0.0)
    return _Partial(number * mean, cost.num_parameters, number * float(cost.macs), latency_s, (), (name,))


def _extended(partial: _Partial, step: _Partial, hi: int) -> _Partial:
    return _Partial(
        partial.loss + step.loss,
        partial.num_parameters + step.num_parameters,
        partial.macs + step.macs,
        partial.latency_s + step.latency_s,
        (*partial.cuts, hi),
        partial.architectures + step.architectures,
    )


def _undominated(partials: list[_Partial], num_best: int, limits: Limits, num_timesteps: int) -> list[_Partial]:
    """Those within the limits that fewer than num_best others make superfluous, by rising loss."""
    kept: list[_Partial] = []
    for partial in sorted(partials, key=lambda one: (one.loss, one.num_parameters, one.macs, one.latency_s)):
        used = _used(partial, limits)
        # Sums of floats: a limit that is met exactly is kept.
        if any(value > limit * scale * (1 + 1e-12) for value, limit, scale in _against(partial, limits, num_timesteps)):
            continue
        # With num_best of them in front it can be in no answer.
        better = sum(all(a <= b for a, b in zip(_used(one, limits), used, strict=True)) for one in kept)
        if better < num_best:
            kept.append(partial)
    return kept


def _used(partial: _Partial, limits: Limits) -> tuple[float, ...]:
    """What a partial has used of everything that is limited."""
    figures = (partial.num_parameters, partial.macs, partial.latency_s)
    bounds = (limits.num_parameters, limits.macs, limits.latency_s)
    return tuple(figure for figure, bound in zip(figures, bounds, strict=True) if bound is not None)


def _against(partial: _Partial, limits: Limits, num_timesteps: int) -> list[tuple[float, float, int]]:
    """(used, limit, what the limit is to be multiplied by) of everything that is limited."""
    bounds = ((limits.num_parameters, 1), (limits.macs, num_timesteps), (limits.latency_s, num_timesteps))
    given = [(bound, scale) for bound, scale in bounds if bound is not None]
    return [(used, bound, scale) for used, (bound, scale) in zip(_used(partial, limits), given, strict=True)]


def _assignment(partial: _Partial, num_timesteps: int, architectures: Mapping[str, Architecture]) -> Assignment:
    timed = all(architectures[name].latency_s is not None for name in partial.architectures)
    return Assignment(
        cuts=partial.cuts[:-1],
        architectures=partial.architectures,
        predicted_loss=partial.loss / num_timesteps,
        num_parameters=partial.num_parameters,
        macs=partial.macs / num_timesteps,
        latency_s=partial.latency_s / num_timesteps if timed else None,
    )


def _why_none(
    architectures: Mapping[str, Architecture], ends: Sequence[int], num_experts: Sequence[int], limits: Limits
) -> str:
    fewest = min(num_experts)
    if fewest > len(ends):
        return f"{fewest} experts do not fit on {len(ends) - 1} places for cuts; take fewer, or a smaller step"
    smallest = {
        "num_parameters": fewest * min(cost.num_parameters for cost in architectures.values()),
        "macs": min(cost.macs for cost in architectures.values()),
        "latency_s": min(cost.latency_s or 0.0 for cost in architectures.values()),
    }
    for name, least in smallest.items():
        limit = getattr(limits, name)
        if limit is not None and least > limit:
            return f"limits.{name} is {limit:g}, but no configuration has less than {least:g}; raise it"
    return "limits cannot be met together by any configuration; raise one of them"

"""What numbers of a study say about each other: ranks, fronts. Pure; lower is better everywhere."""

from collections.abc import Sequence

MIN_PAIRS = 3
"""Fewer pairs have no rank correlation worth naming."""


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's; None for fewer than three pairs, or if either does not vary."""
    if len(a) < MIN_PAIRS or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    # Slow to import, and most commands never ask.
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other is as good as everywhere and better somewhere, by first coordinate."""

    def dominated(index: int) -> bool:
        point = tuple(points[index])
        return any(tuple(other) != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points)

    front = [index for index in range(len(points)) if not dominated(index)]
    return sorted(front, key=lambda index: tuple(points[index]))


def knee(front: Sequence[tuple[float, float]]) -> int:
    """The point of a front that lies farthest below the straight line between its ends, both axes scaled to [0, 1].

    Of fewer than three points, or ends that do not differ, the first in the first coordinate.
    """
    by_first = sorted(range(len(front)), key=lambda index: front[index])
    (x0, y0), (x1, y1) = front[by_first[0]], front[by_first[-1]]
    if len(front) < MIN_PAIRS or x0 == x1 or y0 == y1:
        return by_first[0]
    return max(by_first, key=lambda index: 1 - (front[index][0] - x0) / (x1 - x0) - (front[index][1] - y1) / (y0 - y1))

"""How sure a mean over few seeds is."""

import math
import statistics
from collections.abc import Sequence


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent values and half the width of its interval (Student 1908); NaN for one value.

    Of two values it is 9 standard deviations wide on each side: two seeds show little.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan
    # Slow to import, and most commands never ask.
    from scipy.stats import t

    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def shown_difference(differences: Sequence[float], num_decimals: int) -> str:
    """Their mean with its sign, and half of its 95 % interval where there are several."""
    mean, half_width = mean_interval(differences)
    half = "" if math.isnan(half_width) else f" +- {half_width:.{num_decimals}f}"
    return f"{mean:+.{num_decimals}f}{half}"

"""How much of a remix's coefficients is learned, and how much was there at the start (Remix-DiT, Fig. 4).

The pattern that the paper points at (neighbours alike, distant experts not) is in the prior already: its logits begin
with contiguous runs of experts on one basis. So a figure of trained coefficients shows nothing by itself.
"""

from dataclasses import dataclass

import numpy as np

# Axes: N experts, K bases, P pairs of experts.


@dataclass(frozen=True)
class Pattern:
    """What became of the coefficients in training. All figures are blind to the order of bases."""

    moved: float
    """Mean total variation distance between an expert's coefficients at the start and in the end: 0 not at all, 1 from
    one basis to another (of coefficients that add up to 1)."""

    kept: float
    """Share of the variance of distances between experts in the end that those at the start explain (r squared)."""

    order_start: float

    order_end: float
    """Correlation over pairs of experts of their distance in coefficients and in timesteps: 1, the farther apart the
    more different; 0, no order."""

    @property
    def learned(self) -> float:
        """Share of the pattern that was not there at the start."""
        return 1 - self.kept


def pattern(start_NK: np.ndarray, end_NK: np.ndarray) -> Pattern:
    """Compare the coefficients of the same experts, in the order of timesteps, before and after training.

    ValueError for fewer than three experts, which have too few pairs.
    """
    if len(start_NK) != len(end_NK) or len(end_NK) < 3:
        raise ValueError(f"{len(start_NK)} and {len(end_NK)} experts; a pattern needs the same three or more")
    apart_P = _pairs(np.abs(np.subtract.outer(np.arange(len(end_NK)), np.arange(len(end_NK)))).astype(float))
    before_P, after_P = (_pairs(_distances(table_NK)) for table_NK in (start_NK, end_NK))
    return Pattern(
        moved=float(np.abs(end_NK - start_NK).sum(1).mean() / 2),
        kept=_correlation(before_P, after_P) ** 2,
        order_start=_correlation(before_P, apart_P),
        order_end=_correlation(after_P, apart_P),
    )


def _distances(table_NK: np.ndarray) -> np.ndarray:
    """(N, N) total variation distances."""
    distances_NN: np.ndarray = np.abs(table_NK[:, None] - table_NK[None]).sum(-1) / 2
    return distances_NN


def _pairs(matrix_NN: np.ndarray) -> np.ndarray:
    values_P: np.ndarray = matrix_NN[np.triu_indices(len(matrix_NN), 1)]
    return values_P


def _correlation(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """Pearson's; 0 where one of the two does not vary, for then it explains nothing."""
    if np.ptp(a_P) == 0 or np.ptp(b_P) == 0:
        return 0.0
    return float(np.corrcoef(a_P, b_P)[0, 1])

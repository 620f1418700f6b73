"""How sure medians are: the same rounds drawn again and again with replacement."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def resampled_medians(series: Sequence[Sequence[float]]) -> np.ndarray:
    """``(series, draws)``: medians over rounds drawn with replacement, the same rounds for every series.

    What disturbed a round disturbed it for all series, so they are drawn together. Always the same draws.

    Args:
        series: seconds (or ratios), one per round; all equally long.
    """
    table = np.asarray(series, dtype=np.float64)
    rounds = table.shape[1]
    drawn = np.random.default_rng(0).integers(rounds, size=(DRAWS, rounds))
    return np.median(table[:, drawn], axis=-1)


def ninety_five(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the values: their lower and their upper end."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)

"""The smallest threshold at which answers that settle early keep a promise, from a sample of what will be asked.

Every question has a path: at each of its passes a confidence and the loss of the answer. A question settles at the
first pass whose confidence is at least the threshold, at its last pass in any case. The threshold that is found holds
the mean loss of all questions below ``risk`` with probability ``confidence``, over the draw of the sample (which has to
be drawn like the questions that follow).

Method: risk-controlling prediction sets (Bates et al. 2021, arXiv 2101.02703), whose p-values for a mean loss are those
of learn-then-test (arXiv 2110.01052); conformal risk control (arXiv 2208.02814) bounds the expectation alone. They ask
for a loss that never grows with the threshold, which the loss of the answer that settles isn't: a higher threshold may
trade a right answer for a finer, wrong one. `envelope` bounds it from above by one that is, so neither a grid of
thresholds nor a split of the data is needed.

Why it holds. Let ``R(t)`` be the mean envelope over all questions: not increasing in ``t``, and continuous from the
left, as a pass counts at ``t`` equal to its confidence. The thresholds with ``R(t) > risk`` lie below some ``b``.
Should the threshold that is found be too low, then the p-value at ``b`` (or, where ``R(b) <= risk``, and hence
``R(b) = risk`` by continuity, at this ``b``) is at most ``1 - confidence``, since every threshold above the one that is
found has such a p-value. But at ``b`` the mean loss isn't below ``risk``, so that happens with probability
``1 - confidence`` at most. Equal confidences change nothing of this.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

Paths = Float[np.ndarray, "rows passes"]


def records(confidences: Paths) -> Bool[np.ndarray, "rows passes"]:
    """Which passes are settled at for some threshold: surer than all before them; no number is never sure."""
    sure = np.where(np.isfinite(confidences), confidences, -np.inf)
    before = np.maximum.accumulate(sure, axis=1)
    before = np.concatenate([np.full((len(sure), 1), -np.inf), before[:, :-1]], axis=1)
    return sure > before


def envelope(confidences: Paths, losses: Paths, last: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
    """Each row's largest loss over all passes it settles at for this threshold or a higher one, as a step function.

    Args:
        confidences, losses: of every pass; whatever stands behind a row's last pass doesn't count, nor does the
            confidence in the last.
        last: number of each row's last pass.

    Returns:
        (thresholds, sums): ascending, and for each the sum of all rows' envelopes at it; between two thresholds the
        sum is that of the upper one. Above the highest, whose value is infinite, only last passes count.
    """
    rows, passes = confidences.shape
    early = np.arange(passes) < last[:, None]
    counted = records(np.where(early, confidences, np.nan))
    base = losses[np.arange(rows), last].astype(np.float64)
    # from the surest pass down, a row's envelope grows by what its loss is above the largest so far
    order = np.argsort(np.where(counted, -confidences, np.inf), axis=1, kind="stable")
    values, at = (np.take_along_axis(one, order, axis=1) for one in (losses, confidences))
    seen = np.take_along_axis(counted, order, axis=1)
    grown = np.maximum.accumulate(np.concatenate([base[:, None], np.where(seen, values, -np.inf)], axis=1), axis=1)
    steps = np.diff(grown, axis=1)
    thresholds, belongs = np.unique(at[seen], return_inverse=True)
    added = np.bincount(belongs.reshape(-1), weights=steps[seen], minlength=len(thresholds))
    sums = base.sum() + np.cumsum(added[::-1])[::-1]
    return np.append(thresholds, np.inf), np.append(sums, base.sum())


def log_binomial(n: int, p: float) -> Float[np.ndarray, " counts"]:
    """Logarithms of the probabilities of at most 0, 1, ..., ``n`` of ``n`` draws, each with probability ``p``."""
    counts = np.arange(n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    chance = factorials[n] - factorials - factorials[::-1] + counts * math.log(p) + (n - counts) * math.log1p(-p)
    return np.minimum(np.logaddexp.accumulate(chance), 0.0)


def p_values(sums: Float[np.ndarray, " cases"], n: int, risk: float, binary: bool) -> Float[np.ndarray, " cases"]:
    """Probability of a sum of losses as small as this, or smaller, if their mean is ``risk`` or above.

    Exact for losses that are 0 or 1 (binomial); else the bound of Hoeffding and Bentkus for losses in [0, 1]
    (arXiv 2101.02703, section 3.1.2).

    Args:
        sums: of the losses of ``n`` rows.
        binary: losses are 0 or 1.
    """
    below = log_binomial(n, risk)
    if binary:
        return np.exp(below[np.clip(np.rint(sums).astype(int), 0, n)])
    mean = np.minimum(sums / n, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(mean > 0, mean * np.log(mean / risk), 0.0)
        second = (1 - mean) * np.log((1 - mean) / (1 - risk))
    hoeffding = np.exp(-n * (first + second))
    bentkus = math.e * np.exp(below[np.clip(np.ceil(sums - 1e-9).astype(int), 0, n)])
    return np.minimum(1.0, np.minimum(hoeffding, bentkus))


def rows_needed(risk: float, confidence: float) -> int:
    """Rows without which not even answers that lose nothing would keep the promise."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-risk) - 1e-12)


def smallest_threshold(
    confidences: Paths,
    losses: Paths,
    last: Int[np.ndarray, " rows"],
    risk: float,
    confidence: float,
    binary: bool = False,
) -> tuple[float, float] | None:
    """(The threshold, the sample's mean envelope at it); None where even last passes lose too much.

    Any number between a threshold that would be too low and the next that was seen would do; the middle is taken, so
    that rounding doesn't matter.

    Args:
        confidences, losses, last: as for `envelope`; losses from 0 to 1.
        binary: losses can't be anything but 0 or 1, whatever the sample; that it holds no others doesn't say so.
    """
    n = len(confidences)
    if not n:
        return None
    at, sums = envelope(confidences, losses, last)
    allowed = p_values(sums, n, risk, binary) <= 1 - confidence
    if not allowed[-1]:
        return None
    first = len(allowed) - int(np.argmin(allowed[::-1])) if not allowed.all() else 0
    found = float(at[first])
    if first and math.isfinite(found):
        middle = (at[first - 1] + at[first]) / 2
        found = float(middle) if middle > at[first - 1] else found
    return found, float(sums[first] / n)

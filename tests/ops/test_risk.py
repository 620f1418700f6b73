"""The threshold that keeps a promise: its p-values, its envelope, and the promise itself on hundreds of samples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tokenflex.ops.risk import envelope, log_binomial, p_values, rows_needed, smallest_threshold

CONFIDENCES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, math.nan, -math.inf, math.inf]), st.floats(0, 1, width=32))
LOSSES = st.sampled_from([0.0, 0.25, 1.0])


@st.composite
def paths(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 4)))
    confidences = draw(arrays.arrays(np.float64, shape, elements=CONFIDENCES))
    losses = draw(arrays.arrays(np.float64, shape, elements=LOSSES))
    last = draw(arrays.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return confidences, losses, last


def settled(confidences, losses, last, threshold):
    """Each row's loss at a threshold, said once more in plain words."""
    found = []
    for sure, lost, end in zip(confidences, losses, last, strict=True):
        stop = next((j for j in range(end) if math.isfinite(sure[j]) and sure[j] >= threshold), end)
        found.append(lost[stop])
    return np.array(found)


def bound(confidences, losses, last, threshold):
    """The envelope in plain words: the worst of all thresholds from this one on."""
    higher = [threshold, *(t for t in confidences[np.isfinite(confidences)] if t >= threshold), math.inf]
    return np.max([settled(confidences, losses, last, t) for t in higher], axis=0)


@settings(deadline=None)
@given(paths(), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])))
def test_the_envelope_is_the_worst_of_all_higher_thresholds(found, threshold):
    at, sums = envelope(*found)
    assert bool((np.diff(sums) <= 1e-12).all())
    assert at[-1] == math.inf
    here = sums[np.searchsorted(at, threshold)]
    assert here == pytest.approx(bound(*found, threshold).sum())
    assert here >= settled(*found, threshold).sum() - 1e-12


@settings(deadline=None)
@given(paths(), st.floats(0.05, 0.95), st.floats(0.1, 0.9))
def test_the_smallest_threshold_is_allowed_and_the_next_lower_is_not(found, risk, confidence):
    confidences, losses, last = found
    n = len(last)
    within = losses[np.arange(losses.shape[1]) <= last[:, None]]
    binary = bool(np.isin(within, (0, 1)).all())
    chosen = smallest_threshold(*found, risk, confidence, binary)

    def allowed(threshold):
        return p_values(np.array([bound(*found, threshold).sum()]), n, risk, binary)[0] <= 1 - confidence

    if chosen is None:
        assert not allowed(math.inf)
        return
    threshold, mean = chosen
    assert allowed(threshold)
    assert mean == pytest.approx(bound(*found, threshold).mean())
    early = confidences[np.arange(confidences.shape[1]) < last[:, None]]
    lower = [one for one in early if math.isfinite(one) and one < threshold]
    if lower and any(settled(*found, max(lower)) != settled(*found, threshold)):
        assert not allowed(max(lower))


def test_p_values_of_counts_are_the_binomial_distribution():
    chances = [math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(21)]
    assert np.allclose(np.exp(log_binomial(20, 0.1)), np.cumsum(chances))
    assert np.allclose(p_values(np.arange(21.0), 20, 0.1, True), np.cumsum(chances))
    assert np.isfinite(log_binomial(100_000, 0.01)).all()


@pytest.mark.parametrize("risk", [0.02, 0.1, 0.5])
def test_p_values_of_bounded_losses_are_no_smaller(risk):
    """A count is a bounded loss too, of which less is known."""
    counts = np.arange(51.0)
    exact, bounded = (p_values(counts, 50, risk, binary) for binary in (True, False))
    assert bool((bounded >= exact - 1e-12).all())
    assert bool((bounded <= 1).all())
    assert bounded[0] < 1
    assert bounded[-1] == 1


def test_rows_that_are_needed():
    """As many as make a sample without loss a proof; one less doesn't."""
    for risk, confidence in ((0.05, 0.95), (0.01, 0.99), (0.5, 0.5)):
        n = rows_needed(risk, confidence)
        assert (1 - risk) ** n <= 1 - confidence + 1e-9 < (1 - risk) ** (n - 1) + 1e-9
        none = np.zeros((n, 1))
        last = np.zeros(n, dtype=int)
        assert smallest_threshold(none, none, last, risk, confidence) is not None
        assert smallest_threshold(none[1:], none[1:], last[1:], risk, confidence) is None


SHAPES = ("ties", "two values", "anti-correlated", "not monotone", "heavy tails", "constant", "helpful", "no numbers")


def pool(shape, bounded, size=4000, passes=4):
    """Scores of a population, of one adversarial shape; at the last pass nothing is lost."""
    rng = np.random.default_rng(SHAPES.index(shape))
    hard = rng.random(size)
    confidences = rng.random((size, passes))
    losses = (rng.random((size, passes)) < 0.5 * hard[:, None] * np.linspace(1, 0, passes)).astype(float)
    if shape == "ties":
        confidences = np.round(1 - hard[:, None] + 0.1 * confidences, 1)
    elif shape == "two values":
        confidences = (confidences > hard[:, None]).astype(float)
    elif shape == "anti-correlated":
        confidences = 0.3 * confidences + losses
    elif shape == "not monotone":
        losses[:, 1] = rng.random(size) < 0.3
        losses[:, 2] = rng.random(size) < 0.02
        confidences[:, 1] = np.maximum(confidences[:, 1], confidences[:, 0])
    elif shape == "heavy tails":
        confidences = rng.standard_cauchy((size, passes)) - 5 * losses
    elif shape == "constant":
        confidences[:] = 0.5
    elif shape == "helpful":
        confidences = np.clip(0.2 * confidences + 0.8 * (1 - losses), 0, 1)
    else:
        confidences[rng.random(confidences.shape) < 0.5] = np.nan
    if bounded:
        losses *= rng.random((size, passes))
    losses[:, -1] = 0
    return confidences, losses, np.full(size, passes - 1)


def risk_at(population, threshold):
    """Mean loss of the whole population."""
    confidences, losses, last = population
    sure = np.isfinite(confidences) & (confidences >= threshold)
    sure[np.arange(len(last)), last] = True
    return losses[np.arange(len(last)), sure.argmax(axis=1)].mean()


def broken(population, risk, confidence, rows, splits, find=smallest_threshold):
    """(share of samples whose threshold loses more than the risk, share of thresholds that settle anything)."""
    binary = bool(np.isin(population[1], (0, 1)).all())
    rng = np.random.default_rng(0)
    over, useful = 0, 0
    for _ in range(splits):
        drawn = rng.integers(0, len(population[0]), rows)
        found = find(*(one[drawn] for one in population), risk, confidence, binary)
        assert found is not None
        over += risk_at(population, found[0]) > risk
        useful += math.isfinite(found[0])
    return over / splits, useful / splits


def test_a_sample_of_zeros_and_ones_proves_nothing_of_the_losses():
    """Only who knows that there can be no others may count exactly; the bound for all losses asks for more."""
    losses = np.zeros((200, 2))
    losses[:5, 0] = 1
    confidences, last = np.tile([0.5, np.nan], (200, 1)), np.ones(200, dtype=int)
    exact = smallest_threshold(confidences, losses, last, 0.055, 0.95, binary=True)
    bounded = smallest_threshold(confidences, losses, last, 0.055, 0.95)
    assert exact == (0.5, 5 / 200)
    assert bounded == (math.inf, 0.0)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_promise_is_kept(shape, bounded):
    """Over 2000 samples of 200 rows the threshold is too low in no more than one of ten, up to chance."""
    confidence, splits = 0.9, 2000
    share, useful = broken(pool(shape, bounded), 0.1, confidence, 200, splits)
    limit = (1 - confidence) + 3 * math.sqrt(confidence * (1 - confidence) / splits)
    assert share <= limit, f"{shape}: the promise is broken in {share:.1%} of the samples"
    if shape in ("ties", "helpful"):
        assert useful > 0.5


def test_the_promise_says_something():
    """Without the p-value, at the sample's own mean loss, it is broken far too often; so the test above can fail."""

    def naive(confidences, losses, last, risk, confidence, binary):
        at, sums = envelope(confidences, losses, last)
        return at[int(np.argmax(sums / len(last) <= risk))], 0.0

    assert broken(pool("ties", True), 0.1, 0.9, 200, 300, naive)[0] > 0.2 or (
        broken(pool("helpful", False), 0.1, 0.9, 200, 300, naive)[0] > 0.2
    )

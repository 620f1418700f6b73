"""The decision rule: thresholds, quantiles, more than two levels."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import policies
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_vir import QuantileGatePolicy
from tokenflex_vir.quantile_gate import rank_of

Config = QuantileGatePolicy.Config
SCORES = st.lists(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=1, max_size=9)
QUANTILES = st.one_of(st.none(), st.floats(0, 0.99))


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(threshold=0.2, quantile=0.5), levels=2)], ids=str)
def test_conformance(case):
    case()


def test_registered():
    assert policies.provider("quantile-gate").distribution == "tokenflex-vir"
    assert policies.get("quantile-gate").__name__ == "QuantileGatePolicy"


def choose(scores, **settings):
    table = torch.as_tensor(scores, dtype=torch.float32)
    return Config(**settings).build()(table, torch.ones(table.shape, dtype=torch.long)).tolist()


def test_worked_example():
    # Margins ln 3, -ln 3, 0 and ln 9: the fine level is needed with probability 3/4, 1/4, 1/2 and 9/10.
    scores = [[0.0, math.log(3)], [math.log(3), 0.0], [1.0, 1.0], [-math.log(9), 0.0]]
    assert choose(scores) == [1, 0, 1, 1]
    assert choose(scores, threshold=0.8) == [0, 0, 0, 1]
    assert choose(scores, threshold=0.0) == [1, 1, 1, 1]
    # Sorted they are 0.25, 0.5, 0.75, 0.9; floor(0.6 * 4) = 2 precede the 0.6-quantile, 0.75: two stay fine.
    assert choose(scores, quantile=0.6) == [1, 0, 0, 1]
    # The threshold holds besides: with q = 0 nobody is held back, and 1/4 still isn't enough.
    assert choose(scores, quantile=0.0) == [1, 0, 1, 1]


def test_three_levels_by_hand():
    # Shares 1/2, 1/4, 1/4: P(level > 0) = 1/2, P(level > 1) = 1/4.
    scores = [[math.log(2), 0.0, 0.0]]
    assert choose(scores, threshold=0.6) == [0]
    assert choose(scores, threshold=0.5) == [1]
    assert choose(scores, threshold=0.2) == [2]


def transcribed(scores, threshold, quantile):
    """The coarsest level l with P(level > l) < threshold, or, with a quantile, held back at l by the others."""
    shares = [[math.exp(s) / sum(math.exp(o) for o in row) for s in row] for row in scores]
    above = [[sum(row[level + 1 :]) for level in range(len(row))] for row in shares]
    chosen = []
    for row in above:
        level = 0
        while level < len(row) - 1 and row[level] >= threshold:
            if quantile is not None:
                lower = sum(other[level] < row[level] for other in above)
                ties = sum(other[level] == row[level] for other in above)
                if lower + ties <= math.floor(quantile * len(above) + 1e-9):
                    break
            level += 1
        chosen.append(level)
    return chosen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("quantile", [None, 0.0, 0.3, 0.7, 0.95])
def test_equals_the_rule(levels, quantile, seed):
    scores = torch.randn(7, levels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for threshold in (0.1, 0.5, 0.9):
        expected = transcribed(scores.tolist(), threshold, quantile)
        assert choose(scores, threshold=threshold, quantile=quantile) == expected


@given(scores=SCORES, threshold=st.floats(0.05, 0.95))
def test_images_are_judged_one_by_one(scores, threshold):
    assert choose(scores, threshold=threshold) == [choose([row], threshold=threshold)[0] for row in scores]


@given(scores=SCORES, threshold=st.floats(0, 1), quantile=QUANTILES, seed=st.integers(0, 5))
def test_the_order_of_images_does_not_matter(scores, threshold, quantile, seed):
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = choose(scores, threshold=threshold, quantile=quantile)
    assert choose([scores[i] for i in order], threshold=threshold, quantile=quantile) == [chosen[i] for i in order]


@given(count=st.integers(1, 40), quantile=st.integers(0, 99), seed=st.integers(0, 5))
def test_at_most_so_many_stay_fine(count, quantile, seed):
    """Without ties, exactly ceil((1 - q) n), in whole numbers."""
    margins = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).float() / count
    scores = torch.stack([torch.zeros(count), margins], dim=-1)
    fine = sum(choose(scores, threshold=0.0, quantile=quantile / 100))
    assert fine == -(-(100 - quantile) * count // 100)


def test_whole_products_are_whole():
    """As numbers of the machine, 0.29 * 100 is a little less than 29."""
    assert rank_of(0.29, 100) == 29
    assert [rank_of(0.5, count) for count in (1, 2, 3, 4)] == [0, 1, 1, 2]


def test_ties_are_treated_alike():
    assert choose([[0.0, 1.0]] * 4, quantile=0.75) == [1, 1, 1, 1]


@given(scores=SCORES, quantile=QUANTILES)
def test_a_higher_threshold_is_never_finer(scores, quantile):
    table = [choose(scores, threshold=t, quantile=quantile) for t in (0.0, 0.3, 0.6, 1.0)]
    for lower, higher in itertools.pairwise(table):
        assert all(a >= b for a, b in zip(lower, higher, strict=True))


def test_a_single_level():
    assert choose([[0.3], [0.1]], threshold=0.0) == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 1.5}, "threshold=1.5 is no probability"), ({"threshold": float("nan")}, "threshold=nan"),
     ({"quantile": 1.0}, "quantile=1.0 must be at least 0 and below 1"), ({"quantile": -0.1}, "quantile=-0.1")],
)  # fmt: skip
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings).build()

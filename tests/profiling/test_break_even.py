"""When routing pays, on made-up numbers."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenflex.profiling.break_even import break_even, compare_times, fit
from tokenflex.profiling.interval import ninety_five, resampled_medians

TOKENS = (10, 40, 100)
ROUNDS = 20
NUMBER = st.floats(-100, 100, allow_subnormal=False)
POINTS = st.lists(st.tuples(st.integers(0, 3000), NUMBER), min_size=2, max_size=8)


def levels(slope, start=1.0, tokens=TOKENS):
    """Forced levels' seconds, the same every round."""
    return [[start + slope * count] * ROUNDS for count in tokens]


def even(slope, decision, vanilla=2.0, tokens=TOKENS):
    return break_even(64, tokens, levels(slope, tokens=tokens), decision, vanilla)


def test_lines_by_hand():
    line = fit([0, 1, 2], [1.0, 3.0, 5.0])
    assert (line.slope, line.intercept, line.explained) == pytest.approx((2.0, 1.0, 1.0))
    line = fit([0, 1, 2], [0.0, 3.0, 0.0])
    assert (line.slope, line.intercept, line.explained) == pytest.approx((0.0, 1.0, 0.0))
    line = fit([5, 5], [1.0, 3.0])
    assert (line.slope, line.intercept) == (0.0, 2.0), "one cost says nothing about a slope"


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=8, unique=True), NUMBER, NUMBER)
def test_a_line_is_found_again(tokens, slope, intercept):
    line = fit(tokens, [intercept + slope * count for count in tokens])
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.intercept == pytest.approx(intercept, abs=1e-3)


@given(POINTS, NUMBER, NUMBER)
def test_no_other_line_has_smaller_squares(points, slope, intercept):
    tokens, seconds = zip(*points, strict=True)
    line = fit(tokens, seconds)

    def squares(a, b):
        return sum((s - a * t - b) ** 2 for t, s in points)

    assert squares(line.slope, line.intercept) <= squares(slope, intercept) * (1 + 1e-6) + 1e-6
    assert -1e-6 <= line.explained <= 1


def test_break_even_by_hand():
    found = even(slope=0.01, decision=0.3)
    assert found.slope == pytest.approx(0.01)
    assert (found.coarsest, found.finest) == (10, 100)
    assert found.dropped == pytest.approx(30)
    assert found.kept == pytest.approx(70)
    # At t tokens routing takes 1 + 0.01 t + 0.3; the host's 2 s are reached at 70.
    assert found.kept_beside_vanilla == pytest.approx(70)
    assert "Routing pays when it drops more than 30 of 100 visual tokens, that is when it keeps fewer than 70" in (
        found.in_words
    )
    assert found.verdict == found.to_dict()["verdict"] == "gain"
    assert (found.slope_low, found.slope_high) == pytest.approx((0.01, 0.01))


def test_splicing_counts_beside_the_vanilla_host():
    found = even(slope=0.01, decision=0.3, vanilla=1.8)
    assert found.kept == pytest.approx(70)
    assert found.kept_beside_vanilla == pytest.approx(50)
    found = even(slope=0.01, decision=0.3, vanilla=1.3)
    assert found.kept_beside_vanilla is None
    assert "Beside the vanilla host it gains at no level" in found.in_words
    assert "it gains at every level" in even(slope=0.01, decision=0.3, vanilla=9.0).in_words


def test_no_gain_when_dropping_saves_nothing():
    for slope in (0.0, -0.01):
        found = even(slope, decision=0.3)
        assert (found.dropped, found.kept, found.kept_beside_vanilla) == (None, None, None)
        assert found.in_words.startswith("No gain: routing costs more than it can save here.")
        assert "dropping visual tokens saves no time" in found.in_words
        assert found.verdict == "no gain"


def test_no_gain_when_the_decision_costs_more_than_all_that_can_be_dropped():
    found = even(slope=0.01, decision=1.0)
    assert found.dropped == pytest.approx(100)
    assert found.kept is None
    assert found.in_words.startswith("No gain: routing costs more than it can save here.")
    assert "100 tokens would have to be dropped and at most 90 can be" in found.in_words
    assert found.verdict == "no gain"


def test_no_gain_when_all_levels_cost_the_same():
    found = break_even(1, [4, 4], [[1.0] * 5, [2.0] * 5], 0.1, 2.0)
    assert found.kept is None


def test_scattered_runs_settle_nothing():
    scattered = [[1.0, 1.0, 1.0, 3.0, 4.0], [1.0, 2.0, 3.0, 1.0, 0.5]]
    found = break_even(1, [10, 40], scattered, 0.001, 3.0)
    assert found.slope_low <= 0 <= found.slope_high
    wide = break_even(1, [10, 40], [[1.0] * 5, [1.1, 1.1, 4.0, 4.0, 4.0]], 1.0, 3.0)
    assert wide.kept is not None
    assert wide.slope_low > 0
    assert wide.verdict == "not settled", "at the lower end not even all that can be dropped pays"
    assert wide.in_words.startswith("Not settled: the runs scatter too much to say that routing pays")


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20))
def test_intervals_lie_between_the_runs_and_repeat(values):
    drawn = resampled_medians([values, [2 * v for v in values]])
    low, high = ninety_five(drawn[0])
    assert min(values) <= low <= high <= max(values)
    assert (drawn[1] == 2 * drawn[0]).all(), "the same rounds for all"
    assert (resampled_medians([values])[0] == drawn[0]).all()


@given(st.floats(1e-4, 1.0), st.floats(0, 10), st.floats(0, 10))
def test_a_dearer_decision_never_pays_earlier(slope, one, other):
    cheap, dear = sorted((one, other))
    less, more = even(slope, cheap), even(slope, dear)
    assert less.dropped <= more.dropped
    if more.kept is not None:
        assert less.kept >= more.kept
    else:
        assume(less.kept is not None)
        assert less.dropped <= 90 + 1e-9


@given(st.floats(1e-4, 1.0), st.floats(0, 1.0))
def test_at_break_even_routed_and_finest_take_the_same(slope, decision):
    found = even(slope, decision)
    assume(found.kept is not None)
    routed = found.intercept + found.slope * found.kept + decision
    assert routed == pytest.approx(found.intercept + found.slope * found.finest)


@given(st.floats(1e-4, 1.0), st.floats(0, 1.0), st.floats(0.1, 100))
def test_units_do_not_matter(slope, decision, factor):
    one = even(slope, decision)
    tokens = [factor * count for count in TOKENS]
    same = break_even(64, tokens, levels(slope / factor, tokens=tokens), decision, 2.0)
    assert same.dropped == pytest.approx(factor * one.dropped, rel=1e-4, abs=1e-6)


def test_comparisons_by_hand():
    slow = compare_times("routed", 64, [2.0, 3.0, 2.5], [1.0, 2.0, 2.0])
    assert slow.ratio == 1.5
    assert slow.verdict == "slower"
    assert slow.in_words.startswith("routed is SLOWER than the vanilla host: 1.50 times its time")
    fast = compare_times("routed", 64, [1.0] * 4, [2.0, 2.0, 4.0, 4.0])
    assert fast.in_words.startswith("routed is faster than the vanilla host")
    open_ = compare_times("routed", 1, [1.0, 1.2, 0.8], [1.0, 1.0, 1.0])
    assert open_.verdict == "not settled"
    assert "routed takes 1.00 times the vanilla host's time" in open_.in_words
    assert "whether it is slower the runs don't settle" in open_.in_words
    assert open_.to_dict()["new_tokens"] == 1


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=25), st.floats(0.2, 5))
def test_a_setting_that_always_takes_a_factor_more(vanilla, factor):
    found = compare_times("routed", 1, [factor * seconds for seconds in vanilla], vanilla)
    assert found.ratio == pytest.approx(factor)
    assert (found.p5, found.p95, found.low, found.high) == pytest.approx((factor,) * 4)

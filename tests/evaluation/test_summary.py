"""Arithmetic on made-up tables: oracle, frontier, regret, shuffled choices, intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.evaluation.tables import made
from tokenflex.errors import DataError
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.summary import Column, Table, interval, summarise, wilson
from tokenflex.ops import frontier as frontiers
from tokenflex.ops.frontier import Frontier

# Four samples at three levels of 1, 2 and 4 tokens: one needs the finest, one the middle, one anything, one fails.
SCORES = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0]], float)
TOKENS = np.array([[1] * 4, [2] * 4, [4] * 4], float)
FLAT = np.full(4, 0.25)
FIXED = {f"level:{i}": (SCORES[i], TOKENS[i]) for i in range(3)}
CHOSEN = [[2], [0], [1], [2]]
ROUTER = {"router": ([1, 0, 1, 0], [4, 1, 2, 4], CHOSEN)}


def summary(folder, columns, **given):
    return summarise(Evaluation(made(folder, columns, **given)), resamples=50)


def test_the_oracle_takes_the_fewest_tokens_that_score_best():
    assert frontiers.oracle(SCORES, TOKENS).tolist() == [2, 1, 0, 0]
    partly = np.array([[0.2, 0.5], [0.6, 0.5], [0.6, 0.4]])
    assert frontiers.oracle(partly, TOKENS[:, :2]).tolist() == [1, 0]
    assert frontiers.oracle(np.array([[1.0], [1.0], [1.0]]), np.array([[3], [2], [2]])).tolist() == [1]


def test_the_frontier_by_hand():
    tokens, score = Frontier(SCORES, TOKENS).curve(FLAT)
    # All at 1 token: 0.25. The second sample gains 1 for 1 token, then the first gains 1 for 3.
    assert tokens.tolist() == [1.0, 1.25, 2.0]
    assert score.tolist() == [0.25, 0.5, 0.75]


def test_the_frontier_skips_what_lies_under_the_hull():
    score = np.array([[0.0], [0.1], [1.0]])
    tokens, best = Frontier(score, TOKENS[:, :1]).curve(np.ones(1))
    assert tokens.tolist() == [1.0, 4.0]
    assert best.tolist() == [0.0, 1.0]
    same_cost = Frontier(np.array([[0.0], [0.4]]), np.ones((2, 1)))
    assert [one.tolist() for one in same_cost.curve(np.ones(1))] == [[1.0], [0.4]]


def test_regret_by_hand():
    curve = Frontier(SCORES, TOKENS).curve(FLAT)
    # Right in 2 of 4 with 11 tokens: at 2.75 tokens 0.75 could be had, and 0.5 for 1.25 tokens.
    assert frontiers.regret(curve, 11 / 4, 0.5) == pytest.approx((0.25, 1.5))
    assert frontiers.regret(curve, 2.0, 0.75) == pytest.approx((0.0, 0.0))
    assert frontiers.regret(curve, 1.625, 0.5) == pytest.approx((0.125, 0.375))  # half way between corners
    assert frontiers.regret(curve, 4.0, 0.0) == pytest.approx((0.75, 3.0))


def test_a_whole_summary_by_hand(tmp_path):
    found = summary(tmp_path, {**FIXED, **ROUTER}, kinds=["fine", "fine", "coarse", "coarse"])
    router = found["settings"]["router"]
    assert (router["score"], router["tokens"], router["share"]) == (0.5, 2.75, pytest.approx(11 / 32, abs=1e-6))
    assert (router["regret"], router["regret_tokens"], router["minus_finest"]) == (0.25, 1.5, -0.25)
    assert router["chosen"] == [1, 1, 2]
    assert router["by_kind"]["fine"] == {"samples": 2, "score": 0.5, "tokens": 2.5}
    oracle = found["oracle"]
    assert (oracle["score"], oracle["tokens"], oracle["chosen"]) == (0.75, 2.0, [2, 1, 1])
    # Dealt out: level 0 to a quarter, 1 to a quarter, 2 to half.
    shuffled = found["shuffled"]["router"]
    assert shuffled["score"] == pytest.approx(np.mean([0.5, 0.75, 1.0, 0.0]))
    assert shuffled["tokens"] == 2.75
    assert shuffled["by_kind"]["fine"]["score"] == pytest.approx(0.625)
    assert found["kinds"] == {"fine": 2, "coarse": 2}
    assert found["frontier"] == [[1.0, 0.25], [1.25, 0.5], [2.0, 0.75]]
    assert found["samples"] == 4
    assert list(found["settings"]) == ["level:0", "level:1", "level:2", "router"]


def test_shuffled_choices_are_the_mean_over_all_deals():
    columns = {f"level:{i}": Column(SCORES[i], TOKENS[i], TOKENS[2]) for i in range(3)}
    columns["router"] = Column(np.zeros(4), np.zeros(4), TOKENS[2], CHOSEN)
    shuffled = Table(columns, 3, [""] * 4, 1, 0).derived["shuffled router"]
    deals = list(itertools.permutations([one[0] for one in CHOSEN]))
    each = [[SCORES[level, i] for i, level in enumerate(deal)] for deal in deals]
    np.testing.assert_allclose(shuffled.score, np.mean(each, axis=0))


def test_what_needs_every_level_is_left_out_without_them(tmp_path):
    found = summary(tmp_path / "a", {"level:2": FIXED["level:2"], **ROUTER}, levels=3)
    assert found["oracle"] is None
    assert found["shuffled"] == {}
    assert found["frontier"] == []
    assert "regret" not in found["settings"]["router"]
    assert found["settings"]["router"]["minus_finest"] == -0.25
    found = summary(tmp_path / "b", {**ROUTER}, levels=3)
    assert "minus_finest" not in found["settings"]["router"]


def test_several_images_at_several_levels_are_not_shuffled(tmp_path):
    mixed = {"router": ([1, 0, 1, 0], [4, 1, 2, 4], [[2, 0], [0], [1], [2]])}
    found = summary(tmp_path, {**FIXED, **mixed})
    assert found["shuffled"] == {}
    assert found["settings"]["router"]["chosen"] == [2, 1, 2]
    assert found["settings"]["router"]["regret"] == 0.25


def test_questions_without_images_are_not_part_of_the_deal(tmp_path):
    without = {"router": ([1, 0, 1, 0], [4, 1, 2, 0], [*CHOSEN[:3], []])}
    shuffled = summary(tmp_path, {**FIXED, **without})["shuffled"]["router"]
    assert shuffled["score"] == pytest.approx(np.mean([1 / 3, 2 / 3, 1.0, 0.0]), abs=1e-6)


def test_unfinished_evaluations_are_refused(tmp_path):
    folder = made(tmp_path, {"level:0": FIXED["level:0"]}, levels=3)
    evaluation = Evaluation(folder)
    assert evaluation.missing() == {}
    assert evaluation.missing(["router"]) == {"router": 4}
    del evaluation.records["level:0"][2]
    with pytest.raises(DataError, match=r"isn't complete: level:0 lacks 1 of 4. Run the same command again"):
        summarise(evaluation)
    evaluation.records = {}
    with pytest.raises(DataError, match="it has no answers"):
        summarise(evaluation)


def test_the_interval_is_scipys_bca_and_pairs_its_draws():
    values = np.array([0.1, 0.0, 0.9, 1.0, 0.4, 0.7])
    low, high = interval(lambda weights: np.array([values @ weights, (1 - values) @ weights]), 6, 2000, 1)
    np.testing.assert_allclose(low[0], 1 - high[1])  # the same draws for both
    np.testing.assert_allclose(high[0], 1 - low[1])
    rng = np.random.default_rng(1)
    mean = lambda drawn, axis: np.round(drawn.mean(axis), 12)  # noqa: E731
    theirs = stats.bootstrap((values,), mean, n_resamples=2000, batch=256, method="BCa", rng=rng).confidence_interval
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high))
    again = interval(lambda weights: np.array([values @ weights]), 6, 2000, 1)
    assert (again[0][0], again[1][0]) == pytest.approx((low[0], high[0]))
    other = interval(lambda weights: np.array([values @ weights]), 6, 2000, 2)
    assert (other[0][0], other[1][0]) != (low[0], high[0])


def test_one_sample_and_what_never_varies():
    for count in (1, 5):
        low, high = interval(lambda weights: np.array([3.0 * weights.sum()]), count, 50, 0)
        assert (low[0], high[0]) == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(0, 5, 0.0, 0.434), (5, 5, 0.566, 1.0), (8, 10, 0.490, 0.943)]
)
def test_wilson_by_the_published_formula(right, of, low, high):
    """Textbook values: Brown, Cai, DasGupta 2001, formula (4), at 95 %."""
    assert wilson(np.array([1.0] * right + [0.0] * (of - right))) == pytest.approx((low, high), abs=5e-4)


def test_few_questions_are_not_certain(tmp_path):
    wrong = {f"level:{i}": ([0] * 5, [n] * 5) for i, n in enumerate((1, 2, 4))}
    found = summary(tmp_path, wrong)["settings"]
    assert found["level:0"]["score_ci95"] == [0.0, pytest.approx(0.434, abs=5e-4)]
    assert found["level:0"]["minus_finest_ci95"] == [pytest.approx(-0.434, abs=5e-4), pytest.approx(0.434, abs=5e-4)]
    assert found["level:2"]["minus_finest_ci95"] == [0.0, 0.0]  # less itself
    assert found["level:0"]["tokens_ci95"] == [1.0, 1.0]


def test_intervals_hold_the_mean_and_close_where_nothing_varies(tmp_path):
    found = summary(tmp_path, {**FIXED, **ROUTER})["settings"]
    for entry in found.values():
        low, high = entry["score_ci95"]
        assert low <= entry["score"] <= high
    assert found["level:2"]["tokens_ci95"] == [4.0, 4.0]
    assert found["level:2"]["minus_finest_ci95"] == [0.0, 0.0]
    assert found["level:1"]["minus_finest_ci95"][0] < 0
    assert found["level:1"]["minus_finest_ci95"][1] <= 1e-6  # never better on any sample


tables = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda size: st.tuples(
        st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=size[1], max_size=size[1]),
            min_size=size[0], max_size=size[0],
        ),
        st.lists(
            st.lists(st.integers(1, 9), min_size=size[0], max_size=size[0]).map(sorted),
            min_size=size[1], max_size=size[1],
        ),
    )
)  # fmt: skip


@settings(deadline=None)
@given(table=tables)
def test_no_choice_of_levels_beats_the_frontier(table):
    score, tokens = np.array(table[0]), np.array(table[1]).T.astype(float)
    samples, places = score.shape[1], np.arange(score.shape[1])
    weights = np.full(samples, 1 / samples)
    curve = Frontier(score, tokens).curve(weights)
    assert all((np.diff(one) >= 0).all() for one in curve)
    slopes = np.diff(curve[1]) / np.diff(curve[0])
    assert (np.diff(slopes) <= 1e-9).all()
    for deal in itertools.islice(itertools.product(range(len(score)), repeat=samples), 300):
        chosen = np.array(deal)
        missed, excess = frontiers.regret(curve, tokens[chosen, places].mean(), score[chosen, places].mean())
        assert missed >= -1e-9
        assert excess >= -1e-9
    best = frontiers.oracle(score, tokens)
    assert curve[0][-1] == pytest.approx(tokens[best, places].mean())
    assert curve[1][-1] == pytest.approx(score.max(0).mean())

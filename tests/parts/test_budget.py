"""The dial: caps and weights by hand, against every combination, and never dearer when tightened."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex import Budget
from tokenflex.errors import ConfigError, InputError
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.testing import check_component

SCORES = torch.tensor([[0.0, 0.6, 1.0], [0.9, 0.8, 1.0]])
TOKENS = torch.tensor([[10, 50, 100], [10, 50, 100]])
NUMBER = st.sampled_from([-1.0, -0.25, 0.0, 0.1, 0.1, 0.5, 1.0, 3.0]) | st.floats(-4, 4, width=32)


def picked(scores=SCORES, costs=TOKENS, **settings):
    return Budget(**settings).build()(scores, costs).tolist()


def spent(levels, tokens):
    return sum(int(row[level]) for level, row in zip(levels, tokens, strict=True))


def test_by_hand():
    assert picked() == [2, 2]
    assert picked(tokens=60) == [1, 0], "of the levels that cost at most 60 the best"
    assert picked(ratio=0.1) == [0, 0]
    # With weight 1 the levels are worth -0.1, 0.1, 0.0 and 0.8, 0.3, 0.0.
    assert picked(weight=1.0) == [1, 0]
    assert picked(weight=9.0) == [0, 0]
    assert picked(tokens=5) == [0, 0], "nothing is allowed: the cheapest"
    assert picked(tokens=5, floor=1) == [1, 1]
    assert picked(ceiling=1) == [1, 0]
    assert picked(floor=-1) == [2, 2]


def test_a_request_shares():
    # 200 for both finest. The second image's finest level gains 0.1 for 0.9 of the tokens: it goes first, at 0.111.
    assert picked(tokens=199, per="request") == [2, 0]
    assert picked(ratio=0.5, per="request") == [1, 0], "then the first image's, at 0.4 / 0.5 = 0.8: 60 of 100 spent"
    assert picked(tokens=20, per="request") == [0, 0]
    assert picked(tokens=1, per="request") == [0, 0]
    assert picked(tokens=200, per="request") == [2, 2]


@st.composite
def choices(draw, images=4, levels=4):
    """Scores with many ties, and counts that never fall from coarse to fine."""
    count, depth = draw(st.integers(1, images)), draw(st.integers(1, levels))
    scores = [[draw(NUMBER) for _ in range(depth)] for _ in range(count)]
    tokens = [list(itertools.accumulate(draw(st.integers(0, 5)) for _ in range(depth))) for _ in range(count)]
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(tokens) + 1


@given(choices())
def test_without_a_budget_the_best_score_wins(case):
    scores, tokens = case
    levels = picked(scores, tokens)
    best = ArgmaxPolicy.Config().build()(scores, tokens).tolist()
    for row, level, other in zip(range(len(scores)), levels, best, strict=True):
        assert scores[row, level] == scores[row, other]
        assert tokens[row, level] <= tokens[row, other]


@given(choices(), st.floats(0, 5), st.integers(1, 25) | st.none(), st.floats(0.01, 1) | st.none())
def test_the_best_worth_within_the_cap(case, weight, cap, ratio):
    scores, tokens = case
    ratio = ratio if cap is None else None
    levels = picked(scores, tokens, weight=weight, tokens=cap, ratio=ratio)
    for row, level in enumerate(levels):
        costs, finest = tokens[row].tolist(), int(tokens[row, -1])
        allowed = [i for i, c in enumerate(costs) if c <= (cap or finest) and c <= (ratio or 1.0) * finest]
        if not allowed:
            assert costs[level] == min(costs)
            continue
        worth = {i: float(scores[row, i]) - weight * costs[i] / finest for i in allowed}
        assert level in worth
        assert worth[level] >= max(worth.values()) - 1e-6


TIGHTER = st.tuples(st.floats(0, 6), st.floats(0, 6)).map(sorted)


@given(choices(), TIGHTER, st.sampled_from([None, 3, 9]))
def test_a_larger_weight_never_costs_more(case, weights, cap):
    scores, tokens = case
    low, high = (spent(picked(scores, tokens, weight=w, tokens=cap), tokens) for w in weights)
    assert high <= low


@given(choices(), st.integers(1, 30), st.integers(1, 30), st.floats(0, 3), st.sampled_from(["image", "request"]))
def test_a_tighter_cap_never_costs_more(case, one, other, weight, per):
    scores, tokens = case
    small, large = sorted((one, other))
    tight = spent(picked(scores, tokens, tokens=small, weight=weight, per=per), tokens)
    assert tight <= spent(picked(scores, tokens, tokens=large, weight=weight, per=per), tokens)


@given(choices(), st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["image", "request"]))
def test_a_smaller_ratio_never_costs_more(case, one, other, per):
    scores, tokens = case
    small, large = sorted((one, other))
    tight = spent(picked(scores, tokens, ratio=small, per=per), tokens)
    assert tight <= spent(picked(scores, tokens, ratio=large, per=per), tokens)


@given(choices(), st.integers(1, 60))
def test_a_request_keeps_to_its_budget_and_is_best_at_its_price(case, cap):
    scores, tokens = case
    levels = picked(scores, tokens, tokens=cap, per="request")
    cheapest = int(tokens.min(-1).values.sum())
    cost = spent(levels, tokens)
    assert cost <= max(cap, cheapest)
    share = tokens.double() / tokens[:, -1:]
    worth = sum(float(scores[i, level]) for i, level in enumerate(levels))
    for other in itertools.product(range(tokens.shape[1]), repeat=len(tokens)):
        if spent(other, tokens) <= cost and sum(float(share[i, x]) for i, x in enumerate(other)) <= sum(
            float(share[i, x]) for i, x in enumerate(levels)
        ):
            assert sum(float(scores[i, x]) for i, x in enumerate(other)) <= worth + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens=0 allows nothing"),
        ({"ratio": 0.0}, "ratio=0.0 must be above 0"),
        ({"weight": -1.0}, "weight=-1.0 must be a finite number"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"weight": float("inf")}, "weight=inf of BudgetPolicy must be a finite number"),
        ({"ratio": 30}, "ratio=30.0 is more than all tokens; a ratio is a share, so 0.3 allows 30 %"),
        ({"ratio": 1.0000001}, "more than all tokens"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": "0.3"}, "ratio='0.3' of BudgetPolicy must be a finite number or None"),
        ({"ratio": True}, "ratio=True"),
        ({"ratio": 0.3, "tokens": 5}, "tokens=5 and ratio=0.3 are two limits on the same tokens"),
        ({"tokens": 2.5}, "tokens=2.5 of BudgetPolicy must be an integer or None"),
        ({"tokens": float("nan")}, "tokens=nan"),
        ({"tokens": True}, "tokens=True"),
        ({"tokens": 10**30}, "tokens=1000"),
        ({"floor": 1.5}, "floor=1.5"),
        ({"floor": True}, "floor=True"),
        ({"ceiling": None}, "ceiling=None"),
        ({"per": 3}, "per=3"),
        ({"per": "batch"}, "per='batch'; use one of image, tile, request"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Budget(**settings)


def test_levels_that_are_not_there_are_refused_with_the_parts():
    with pytest.raises(ConfigError, match="floor=5 and ceiling=-1 leave no level; with 5 levels"):
        Budget(floor=5).build(num_levels=5)
    with pytest.raises(ConfigError, match=r"level=5; with 5 levels use 0\.\.4 or -1"):
        ConstantPolicy.Config(level=5).build(num_levels=5)


def test_minus_infinity_rules_a_level_out():
    never = -torch.inf
    scores = torch.tensor([[0.0, 0.5, never], [never, 0.1, 0.0], [never, never, 1.0]])
    tokens = TOKENS[:1].expand(3, 3)
    assert picked(scores, tokens) == ArgmaxPolicy.Config().build()(scores, tokens).tolist() == [1, 1, 2]
    assert picked(scores, tokens, weight=3.0) == [0, 1, 2]
    assert picked(scores, tokens, tokens=60) == [1, 1, 0], "what is allowed has the last word"
    assert picked(scores[:2], tokens[:2], tokens=60, per="request") == [0, 1], (
        "a level ruled out is the last to be taken"
    )
    assert picked(scores, tokens, tokens=30, per="request") == [0, 0, 0]


@pytest.mark.parametrize("settings", [{"floor": 3}, {"floor": 2, "ceiling": 1}, {"ceiling": -4}])
def test_levels_that_are_not_there(settings):
    with pytest.raises(InputError, match="leave no level; with 3 levels use"):
        picked(**settings)


@pytest.mark.parametrize(
    "settings", [{"tokens": 7}, {"ratio": 0.3}, {"weight": 0.5}, {"tokens": 9, "per": "request"}, {"floor": 1}]
)
def test_it_keeps_the_contract(settings):
    check_component(Budget(**settings)).raise_if_bad()


@pytest.mark.parametrize("router", ["avg", "reconstruction", "random"])
def test_on_a_host_with_any_router(host, batch, router):
    flex = tokenflex.wrap(host, router=router, voter="mean")
    inputs = batch("user : <image> w1 w2 assistant :", "user : <image> w3 <image> assistant :")
    free = flex.decide(**inputs)
    costs = []
    for ratio in (0.05, 0.2, 0.5, 1.0):
        decisions = flex.decide(**inputs, budget=Budget(ratio=ratio))
        costs.append(sum(one.tokens for one in decisions))
        assert all(one.tokens <= ratio * one.of or one.level == 0 for one in decisions)
    assert costs == sorted(costs)
    assert [one.level for one in flex.decide(**inputs, budget=Budget(ratio=1.0))] == [one.level for one in free]
    output = flex.generate(**inputs, budget=Budget(tokens=12), max_new_tokens=2, return_dict_in_generate=True)
    assert all(one.tokens <= 12 or one.level == 0 for one in output.decisions)
    assert flex(**inputs, budget=Budget(weight=1e6)).decisions[0].level == 0


def test_per_tile_counts_what_a_view_keeps(host, left):
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    per_view = flex.compressor.scaler.granularities(flex.adapter.grid)
    for level, kept in enumerate(per_view):
        (decision, *_) = flex.decide(**left, budget=Budget(tokens=kept, per="tile"))
        assert decision.level == level if level == 4 else decision.level == 0


def test_a_request_is_a_row_of_the_batch(host, batch):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean")
    texts = ("user : <image> w1 assistant :", "user : <image> w3 <image> w5 assistant :")
    budget = Budget(ratio=0.4, per="request")
    together = [one.level for one in flex.decide(**batch(*texts), budget=budget)]
    first = [one.level for one in flex.decide(**batch(texts[0]), budget=budget)]
    second = [one.level for one in flex.decide(**batch(texts[1], first=1), budget=budget)]
    assert together == first + second


def test_a_forced_level_and_a_budget_contradict(flex, left):
    with pytest.raises(InputError, match="level=0 forces the level, so the budget has no say"):
        flex.decide(**left, level=0, budget=Budget(ratio=0.5))


def test_a_budget_is_saved_with_the_parts(host, left, tmp_path):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean", policy=Budget(ratio=0.2))
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=host)
    assert [one.level for one in again.decide(**left)] == [one.level for one in flex.decide(**left)]
    assert again.compressor.policy.config == Budget(ratio=0.2)


def test_calibrate_meets_the_target(host, batch):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean")
    data = [batch("user : <image> w1 assistant :", "user : <image> w3 <image> assistant :", first=i) for i in range(4)]
    free = [one for b in data for one in flex.decide(**b, budget=Budget(ratio=1.0))]
    mean = sum(one.tokens for one in free) / len(free)
    last = mean + 1
    for share in (1.0, 0.7, 0.4, 0.2):
        dial = tokenflex.calibrate(flex, Budget(ratio=share), data)
        assert (dial.tokens, dial.ratio) == (None, None if dial.weight else 1.0)
        found = [one for b in data for one in flex.decide(**b, budget=dial)]
        tokens = sum(one.tokens for one in found) / len(found)
        assert tokens <= share * sum(one.of for one in found) / len(found)
        assert tokens <= last
        last = tokens
    exact = tokenflex.calibrate(flex, Budget(tokens=int(mean) + 1), data)
    assert exact.weight == 0.0


def test_calibrate_refuses(flex, batch, left):
    with pytest.raises(ConfigError, match="needs one target"):
        tokenflex.calibrate(flex, Budget(), [left])
    with pytest.raises(ConfigError, match="needs one target"):
        tokenflex.calibrate(flex, ConstantPolicy.Config(), [left])
    with pytest.raises(InputError, match="is no budget"):
        tokenflex.calibrate(flex, 3, [left])
    with pytest.raises(InputError, match="the target allows 1"):
        tokenflex.calibrate(flex, Budget(tokens=1), [left])
    with pytest.raises(InputError, match="no images"):
        tokenflex.calibrate(flex, Budget(tokens=50), [])

"""Levels and budgets as callers write them: one reading everywhere, and this library's errors for the rest."""

import decimal
import fractions
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import tokenflex
from tokenflex import Budget
from tokenflex.contracts.levels import read_levels, spread
from tokenflex.errors import ConfigError, InputError
from tokenflex.model import request
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.routers.avg import AVGRouter

LEVELS, IMAGES = 5, 3
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def named(level: int):
    """Level 0 to 4 in every form there is for one level."""
    forms = [int, np.int64, np.uint8, np.array, torch.tensor, lambda n: torch.tensor(n, dtype=torch.uint8)]
    forms += {0: [lambda n: "coarsest"], LEVELS - 1: [lambda n: "finest"]}.get(level, [])
    return st.sampled_from(forms).map(lambda form: form(level)) | st.just(level - LEVELS)


LEVEL = st.integers(0, LEVELS - 1)
ONE = LEVEL.flatmap(lambda level: st.tuples(named(level), st.just(level)))
LIST = st.lists(ONE, min_size=IMAGES, max_size=IMAGES).flatmap(
    lambda ones: st.sampled_from([list, tuple]).map(
        lambda form: (form(written for written, _ in ones), [plain for _, plain in ones])
    )
)
ARRAY = st.tuples(
    st.sampled_from([np.array, torch.tensor, lambda x: np.array(x, dtype=object), lambda x: torch.tensor(x).short()]),
    st.lists(LEVEL, min_size=IMAGES, max_size=IMAGES),
).map(lambda pair: (pair[0](pair[1]), pair[1]))
ACCEPTED = ONE | LIST | ARRAY | st.just((range(1, 4), [1, 2, 3]))

NO_LEVEL = [
    1.5, 1.0, float("nan"), True, False, np.True_, np.float32(1), "12", "1", "", "fine", b"\x01", 1j, object(), int,
    torch.tensor(1.0), torch.tensor(True), torch.tensor([[0, 1, 2]]), torch.tensor([0.0, 1.0, 2.0]), np.array("1"),
    torch.tensor([True, False, True]), torch.empty(IMAGES, dtype=torch.long, device="meta"), np.zeros((1, 3), int),
    torch.tensor(1, device="meta"), decimal.Decimal(1), fractions.Fraction(1), LEVELS, -LEVELS - 1, 99, 10**40,
    {0: 1}, {0, 1, 2}, frozenset({0}), iter([0, 1, 2]), [None, 1, 2], [0, 1, True], [0, 1, 2.0], [[0], [1], [2]],
    [0, 1], [0, 1, 2, 3], [], (), [0, 1, "12"], [0, 1, 99], bytearray(3), memoryview(bytes(3)), lambda: 0,
]  # fmt: skip
NO_BUDGET = [
    1, 0, 100, True, np.int64(3), "0.3", "", b"0.3", [0.3], (0.3,), {0.3}, object(), Budget, Budget(), float("nan"),
    float("inf"), -0.1, 0.0, 30.0, 1.5, torch.tensor([0.3]), torch.tensor(float("nan")), np.array([0.3]), {}, 1j,
    {"ratio": 30}, {"ratio": "0.3"}, {"ration": 0.3}, {"ratio": 0.3, "tokens": 5}, {1: 2, "a": 3}, {"tokens": 2.5},
    {"weight": 0.0}, {"per": "request"}, {"floor": 9}, {"floor": 3, "ceiling": 2}, {"floor": True},
    AVGRouter.Config(), ConstantPolicy.Config(level=9), Budget(ratio=0.3).build(), Budget(floor=9),
    Budget(ceiling=-9), decimal.Decimal("0.3"), lambda: 0.3, torch.tensor(0.3, device="meta"), np.array("0.3"),
]  # fmt: skip


@given(ACCEPTED)
def test_every_form_is_its_plain_integers(case):
    written, plain = case
    levels = [plain] * IMAGES if isinstance(plain, int) else plain
    assert spread(read_levels(written, LEVELS), IMAGES) == levels


@given(ACCEPTED)
@QUICK
def test_every_form_decides_as_its_plain_integers(flex, left, case):
    written, plain = case
    for one, other in zip(flex.decide(**left, level=written), flex.decide(**left, level=plain), strict=True):
        assert (one.level, one.tokens, one.scores) == (other.level, other.tokens, None)
        assert type(one.level) is int


@pytest.mark.parametrize("level", NO_LEVEL)
def test_anything_else_is_an_input_error(level):
    with pytest.raises(InputError):
        spread(read_levels(level, LEVELS), IMAGES)


@given(st.sampled_from(NO_LEVEL))
@QUICK
def test_every_call_refuses_what_is_no_level(flex, left, level):
    for call in (flex, flex.decide, flex.generate, lambda level, **inputs: flex.prepare(inputs, level)):
        with pytest.raises(InputError):
            call(**left, level=level)


@pytest.mark.parametrize("budget", NO_BUDGET)
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises((InputError, ConfigError)):
        request.read(None, budget, LEVELS)


@given(st.sampled_from(NO_BUDGET))
@QUICK
def test_every_call_refuses_what_is_no_budget(flex, left, budget):
    for call in (flex, flex.decide, flex.generate, lambda budget, **inputs: flex.prepare(inputs, budget=budget)):
        with pytest.raises((InputError, ConfigError)):
            call(**left, budget=budget)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(JUNK, JUNK)
def test_nothing_but_our_own_errors(level, budget):
    try:
        levels, policy = request.read(level, budget, LEVELS)
        chosen = None if levels is None else spread(levels, IMAGES)
    except (InputError, ConfigError):
        return
    assert chosen is None or all(0 <= one < LEVELS for one in chosen)
    assert chosen is None or policy is None


@pytest.mark.parametrize(
    "written",
    [
        0.3,
        np.float64(0.3),
        np.array(0.3),
        torch.tensor(0.3, dtype=torch.double),
        {"ratio": 0.3},
        {"ratio": np.float64(0.3)},
    ],
)
def test_every_form_of_a_budget_decides_alike(host, left, written):
    flex = tokenflex.wrap(host, router="reconstruction", voter="mean")
    plain = [one.level for one in flex.decide(**left, budget=Budget(ratio=0.3))]
    assert [one.level for one in flex.decide(**left, budget=written)] == plain
    assert request.read_budget(written) == Budget(ratio=0.3)


def test_a_mapping_has_any_setting_and_other_policies_stand_in(flex, left):
    assert request.read_budget({"tokens": 9, "per": "request"}) == Budget(tokens=9, per="request")
    assert request.read_budget({"tokens": np.int32(9), "floor": torch.tensor(1)}) == Budget(tokens=9, floor=1)
    assert [one.level for one in flex.decide(**left, budget=ConstantPolicy.Config(level=2))] == [2, 2, 2]
    assert isinstance(request.read(None, ArgmaxPolicy.Config(), LEVELS)[1], ArgmaxPolicy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"level": True}, r"level=True \(bool\) is no level; use an integer from 0 \(fewest tokens\) to 4"),
        ({"level": "12"}, r"level='12' \(str\) is no level"),
        ({"level": [[0, 1, 2]]}, "a flat list"),
        ({"level": [0, 1]}, "level has 2 entries for 3 images"),
        ({"level": 99}, "level 99 is out of range: this scaler has 5 levels"),
        ({"budget": 100}, r"budget=100 \(int\) is no budget; a whole number could mean tokens or a ratio"),
        ({"budget": Budget()}, "limits nothing"),
        ({"budget": {"weight": 0}}, "limits nothing"),
        ({"budget": "0.3"}, "use the settings of a policy"),
        ({"budget": 0.3, "level": 1}, "level=1 forces the level"),
    ],
)
def test_messages_say_how_to_mend_it(flex, left, given, message):
    with pytest.raises(InputError, match=message):
        flex.decide(**left, **given)


@pytest.mark.parametrize("answers", [False, True])
def test_text_alone_takes_no_less_care(flex, batch, answers):
    text = batch("w1 w2")
    run = partial(flex.generate, max_new_tokens=1) if answers else flex
    for level in (99, "12", [0], True, torch.tensor([1])):
        with pytest.raises(InputError):
            run(**text, level=level)
    with pytest.raises(ConfigError):
        run(**text, budget=30.0)
    with pytest.raises(ConfigError, match="leave no level"):
        run(**text, budget=Budget(floor=9))
    for level in (0, "finest", [], None):
        run(**text, level=level)


@pytest.mark.parametrize(
    "name", ["levels", "lvl", "Level", "levl", "budgets", "buget", "objectives", "ratio", "tokens"]
)
def test_names_that_are_nearly_ours_are_refused(flex, left, name):
    for call in (flex, flex.decide, flex.generate, lambda **given: flex.prepare(given)):
        with pytest.raises(InputError, match=f"{name}= is"):
            call(**left, **{name: 0})


def test_names_of_the_host_are_left_alone(flex, left):
    request.check(flex, [*GenerationConfig().to_dict(), *left, "labels", "use_cache", "output_attentions", "label_ids"])

    class Host(torch.nn.Module):
        def forward(self, levels=None, tokens=None): ...

    class Flex:
        host, adapter, compressor = Host(), flex.adapter, flex.compressor

    request.check(Flex, ["levels", "tokens"])
    with pytest.raises(InputError, match=r"lvl= is nothing that the model takes\. Did you mean level="):
        request.check(Flex, ["lvl"])


def test_an_objective_takes_no_level(flex, left):
    with pytest.raises(InputError, match="the objective chooses its levels itself"):
        flex(**left, level=1, objective=lambda model, batch: None)


def test_features_at_levels_that_are_not_there(flex, left):
    encoded = flex.encode(left)
    for levels in ([0, 1, 5], [0, 1], [0, 1, 2, 3]):
        with pytest.raises(InputError):
            flex.at_levels(left, encoded, levels)
    assert flex.at_levels(left, encoded, [-1, -1, -1]).tokens == flex.at_levels(left, encoded, [4, 4, 4]).tokens

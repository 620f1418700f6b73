"""One budget for a conversation's images: floors, the newest images' share, more tokens never make coarser."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenflex
from tokenflex.errors import ConfigError
from tokenflex.policies.fade import Fade, FadePolicy

LEVELS = 5
COUNTS = (4, 8, 14, 28, 52)
ROWS = st.lists(st.integers(1, 60), min_size=LEVELS, max_size=LEVELS, unique=True).map(sorted)
SCORES = st.lists(st.floats(-8, 8), min_size=LEVELS, max_size=LEVELS)
CASES = st.integers(1, 9).flatmap(
    lambda images: st.tuples(
        st.lists(ROWS, min_size=images, max_size=images), st.lists(SCORES, min_size=images, max_size=images)
    )
)
SETTINGS = st.builds(
    Fade,
    newest=st.sampled_from([0.25, 0.5, 0.75]),
    recall=st.sampled_from([0.0, 0.25]),
    step=st.integers(1, 4),
    fading=st.sampled_from([0.25, 0.5, 1.0]),
    floor=st.sampled_from([0, 1]),
    ceiling=st.sampled_from([-1, -2]),
)


def changed(fade, **settings):
    return Fade(**{**fade.to_dict(), **settings})


def chosen(fade, tokens, scores=None):
    counts = torch.tensor(tokens)
    scores = torch.zeros(counts.shape) if scores is None else torch.tensor(scores)
    return FadePolicy(fade)(scores, counts).tolist()


def costs(levels, tokens):
    return [row[level] for level, row in zip(levels, tokens, strict=True)]


@settings(max_examples=200, deadline=None)
@given(SETTINGS, CASES, st.integers(1, 600), st.integers(0, 300))
def test_more_tokens_never_make_an_image_coarser(fade, case, few, more):
    tokens, scores = case
    before = chosen(changed(fade, tokens=few), tokens, scores)
    after = chosen(changed(fade, tokens=few + more), tokens, scores)
    assert all(one <= other for one, other in zip(before, after, strict=True))


@settings(max_examples=200, deadline=None)
@given(SETTINGS, CASES, st.integers(1, 600))
def test_the_total_fits_where_the_floors_do(fade, case, allowed):
    tokens, scores = case
    levels = chosen(changed(fade, tokens=allowed), tokens, scores)
    floors, first = [row[fade.floor] for row in tokens], (len(tokens) - 1) // fade.step * fade.step
    least = sum(floors[:first]) + fade.step * max(floors[first:])
    assert sum(costs(levels, tokens)) <= max(allowed, least)
    assert all(fade.floor <= level <= LEVELS + fade.ceiling for level in levels)


@settings(max_examples=100, deadline=None)
@given(SETTINGS, st.integers(1, 9), st.integers(40, 600))
def test_the_newest_have_their_share(fade, images, allowed):
    """Whatever is asked about older images."""
    fade = changed(fade, tokens=allowed, floor=0, ceiling=-1)
    levels = chosen(fade, [COUNTS] * images, [[0.0, 0, 0, 0, 9]] * images)
    first = (images - 1) // fade.step * fade.step
    share = min(max(fade.newest * allowed, fade.step * COUNTS[0]), allowed - COUNTS[0] * first) / fade.step
    expected = max((level for level in range(LEVELS) if COUNTS[level] <= share), default=0)
    assert levels[first:] == [expected] * (images - first)


@settings(max_examples=100, deadline=None)
@given(SETTINGS, st.integers(1, 9), st.integers(20, 600))
def test_levels_stay_until_a_step_is_full(fade, images, allowed):
    fade = changed(fade, tokens=allowed, recall=0.0)
    before, after = (chosen(fade, [COUNTS] * count) for count in (images, images + 1))
    if images % fade.step:
        assert after[:images] == before


def test_older_images_fade():
    levels = chosen(Fade(tokens=200, step=1, recall=0.0), [COUNTS] * 5)
    assert levels == sorted(levels)
    assert levels[-1] == LEVELS - 1
    assert levels[0] < levels[-2]


def test_an_image_that_is_asked_about_comes_back():
    scores = [[4.0, 0, 0, 0, 0]] * 6
    asked = [row if i != 1 else [0.0, 0, 0, 0, 9] for i, row in enumerate(scores)]
    fade = Fade(tokens=220, step=1)
    before, after = chosen(fade, [COUNTS] * 6, scores), chosen(fade, [COUNTS] * 6, asked)
    assert after[1] == LEVELS - 1 > before[1]
    assert [a for i, a in enumerate(after) if i != 1] == [b for i, b in enumerate(before) if i != 1]
    reasons = FadePolicy(fade).reasons(torch.tensor(asked), torch.tensor([COUNTS] * 6))
    assert reasons[1] == f"raised from level {before[1]}: the router asks for it"
    assert reasons[0] == "older by 5 steps"
    assert reasons[-1] == "one of the newest"


def test_without_a_limit_all_are_fine():
    assert chosen(Fade(), [COUNTS] * 3) == [LEVELS - 1] * 3
    assert chosen(Fade(ceiling=2), [COUNTS] * 3) == [2] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens=0 allows nothing"),
        ({"newest": 0.8, "recall": 0.3}, "newest=0.8 and recall=0.3 are shares of the same tokens"),
        ({"newest": 0.0}, "must be above 0"),
        ({"fading": 0.0}, "must be above 0"),
        ({"step": 0}, "step=0 must be an integer, 1 or more"),
        ({"recall": 1.5}, "recall=1.5 is no share"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Fade(**values)


def test_levels_that_are_not_there():
    with pytest.raises(ConfigError, match="leave no level"):
        FadePolicy(Fade(floor=7), num_levels=LEVELS)


def test_it_is_public():
    assert tokenflex.Fade is Fade

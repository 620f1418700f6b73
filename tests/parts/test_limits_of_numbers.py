"""Numbers at their limits and in other types: finite, or an error that says so; and what a close call is."""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenflex
from tests.torture import numerics
from tokenflex.contracts import Decision, Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.relevance import relevance
from tokenflex.routers import avg
from tokenflex.testing import strategies
from tokenflex.testing.conformance import check_component

SEEDS = st.integers(0, 2**16)
SIZES = st.builds(Grid, rows=st.sampled_from([1, 2, 9]), cols=st.sampled_from([1, 3, 30]))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(numerics.names("scaler")), SIZES, st.sampled_from(sorted(numerics.FILLS)),
    st.sampled_from(numerics.TYPES), SEEDS,
)  # fmt: skip
def test_scalers_stay_finite(name, grid, fill, dtype, seed):
    given_image = numerics.image(grid, fill, dtype, 2, torch.Generator().manual_seed(seed))
    part = tokenflex.scalers.get(name).Config().build(dim=numerics.DIM, grid=numerics.GRID)
    assert numerics.finite([part.scale(given_image, level) for level in range(part.num_levels)], grid)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(numerics.names("router")), st.sampled_from(numerics.names("voter")), SIZES,
    st.sampled_from(sorted(numerics.FILLS)), st.sampled_from(numerics.TYPES), st.integers(0, 3), st.booleans(), SEEDS,
)  # fmt: skip
@torch.no_grad()
def test_elections_have_a_finite_result_or_say_that_they_have_none(
    router, voter, grid, fill, dtype, count, masked, seed
):
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    named = [getattr(tokenflex, f"{kind}s").get(name).Config() for kind, name in (("router", router), ("voter", voter))]
    scaler, policy = (tokenflex.scalers.get("average-pool").Config(), tokenflex.policies.get("argmax").Config())
    parts = numerics.build(scaler, *named, policy, dim=numerics.DIM, grid=numerics.GRID).eval().to(dtype)
    shown = numerics.image(grid, fill, dtype, 2, random)
    asked = numerics.words(count, masked, fill, dtype, random)
    tally = numerics.Tally()
    tally.attempt("", lambda: numerics.judged(parts, shown, asked))
    assert not tally.seen
    if tally.refused:
        with pytest.raises(InputError, match="no level can be chosen for image 0"):
            numerics.judged(parts, shown, asked)


@pytest.mark.parametrize("section", [numerics.policies, numerics.confidences])
def test_policies_and_confidences(section):
    assert section(Random(0), 1.0, 0).fine


@torch.no_grad()
def test_choices_differ_between_types_below_the_documented_margin_only():
    found = numerics.flips(500, seed=5)
    assert found["same"].swaps == found["same"].above == found["text"].above == found["relevance"].jumps == 0
    assert found["same"].gap > 0


@torch.no_grad()
def test_what_the_documented_margin_is_about_would_be_noticed():
    """Words rounded more coarsely swap places, and choices with a wide margin turn over."""
    generator = torch.Generator().manual_seed(0)
    features, words = torch.randn(300, 1, 36, 32, generator=generator), torch.randn(300, 10, 32, generator=generator)
    found = numerics.Flips()
    parts = numerics.published()
    coarse = (words * 4).round() / 4
    swapped = (numerics.ordered(features, words) != numerics.ordered(features, coarse)).any(-1)
    found.add(numerics.scored(parts, features, words), numerics.scored(parts, features, coarse), swapped)
    assert found.swaps > 0
    assert found.above > 0


def request(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    grid = numerics.GRID
    image = VisualTokens(torch.randn(1, grid.tokens, 32, generator=generator), grid)
    return image, Instruction(torch.randn(count, 32, generator=generator), torch.ones(count, dtype=torch.bool))


def near_tie(image, words):
    """The instruction with its first two words nearly equally relevant, and the same with them the other way round."""
    mean = torch.nn.functional.normalize(image.features[0], dim=-1).mean(-2)
    first, second = words.embeddings[0], words.embeddings[1]
    mirrored = second - 2 * (second @ mean) / (mean @ mean) * mean
    blend = second + (mirrored - second) * 0.5
    flat = torch.stack([first - (first @ mean) / (mean @ mean) * mean, blend])
    both = [torch.cat([flat + sign * torch.tensor([[1e-5], [-1e-5]]) * mean, words.embeddings[2:]]) for sign in (1, -1)]
    return [Instruction(each, words.mask) for each in both]


@pytest.mark.parametrize(("order", "jumps"), [("relevance", True), ("text", False)])
@torch.no_grad()
def test_with_words_in_the_order_of_the_text_near_ties_change_nothing(order, jumps):
    image, words = request()
    one, other = near_tie(image, words)
    orders = [relevance(image.features[0], each.embeddings).argsort(descending=True) for each in (one, other)]
    assert not torch.equal(*orders)
    parts = numerics.published(order)
    gap = (parts.scores([image], [one]) - parts.scores([image], [other])).abs().max()
    assert (gap > 1e-2) == jumps


@torch.no_grad()
def test_a_router_in_half_precision_compares_the_hosts_own_numbers():
    """Words that bfloat16 can't tell apart: the router that is in bfloat16 still takes the more relevant one."""
    image, _ = request()
    mean = torch.nn.functional.normalize(image.features[0], dim=-1).mean(-2)
    flat = torch.randn(32, generator=torch.Generator().manual_seed(3))
    flat = flat - (flat @ mean) / (mean @ mean) * mean
    pair = torch.stack([flat, flat + 1e-3 * mean])
    assert not torch.equal(pair[0], pair[1])
    config = tokenflex.routers.get("avg").Config(text_tokens=1)
    seen = []

    def spy(words, scores, mask, k, **settings):
        seen.append(scores.argmax(-1).flatten().tolist())
        return most(words, scores, mask, k, **settings)

    most = avg.most_relevant
    torch.manual_seed(0)
    scaler, voter = tokenflex.scalers.get("average-pool").Config(), tokenflex.voters.get("mean").Config()
    policy = tokenflex.policies.get("argmax").Config()
    parts = numerics.build(scaler, config, voter, policy, dim=32, grid=numerics.GRID).eval()
    avg.most_relevant = spy
    try:
        for made in (parts, parts.bfloat16()):
            made.scores([image], [Instruction(pair, torch.ones(2, dtype=torch.bool))])
    finally:
        avg.most_relevant = most
    assert seen == [[1], [1]]


def test_order_is_one_of_two():
    with pytest.raises(ConfigError, match="order='alphabet'; use 'relevance'"):
        tokenflex.routers.get("avg").Config(order="alphabet").build(dim=32, num_levels=5)


def test_the_order_of_the_text_keeps_the_laws_of_routers():
    check_component(tokenflex.routers.get("avg").Config(order="text", text_tokens=4)).raise_if_bad()


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=6), st.data())
def test_margin_is_the_distance_to_the_best_other_level(scores, data):
    level = data.draw(st.integers(0, len(scores) - 1))
    margin = Decision(level, torch.tensor(scores), 1, 2).margin
    assert margin == scores[level] - max(scores[:level] + scores[level + 1 :])
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    assert Decision(best, torch.tensor(scores), 1, 2).margin >= 0


def test_margin_where_there_is_nothing_to_compare():
    never = -math.inf
    assert Decision(0, None, 1, 2).margin is None
    assert Decision(0, torch.tensor([1.0]), 1, 2).margin is None
    assert Decision(0, torch.tensor([1.0, math.nan]), 1, 2).margin is None
    assert Decision(1, torch.tensor([never, never]), 1, 2).margin is None
    assert Decision(1, torch.tensor([never, 1.0]), 1, 2).margin == math.inf
    assert Decision(0, torch.tensor([never, 1.0]), 1, 2).margin == -math.inf


@settings(max_examples=20, deadline=None)
@given(strategies.ballots(levels=1))
def test_one_level_has_a_finite_score(ballots):
    for name in ("mean", "majority", "attention", "quantile", "max-detail"):
        part = tokenflex.voters.get(name).Config().build(num_levels=1)
        assert bool(part(ballots).isfinite().all())

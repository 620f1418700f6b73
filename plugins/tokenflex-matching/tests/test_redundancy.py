"""The redundancy router: tokens left when pairs above a threshold are merged."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases, check_component
from tokenflex_matching.redundancy import RedundancyRouter, tokens_left
from tokenflex_matching.tome import ToMeScaler

GRIDS = st.builds(Grid, st.integers(1, 5), st.integers(1, 6))
CONFIGS = [
    RedundancyRouter.Config(),
    RedundancyRouter.Config(threshold=0.0, rounds=1),
    RedundancyRouter.Config(threshold=-1.0, rounds=9),
]
NO_WORDS = Instruction(torch.zeros(0, 6), torch.zeros(0, dtype=torch.bool))


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return round(dot / lengths * 65536) / 65536


def transcribed(vectors, threshold, rounds):
    """Tokens left, by the rule."""
    groups = [[i] for i in range(len(vectors))]
    for _ in range(rounds):
        means = [[sum(column) / len(g) for column in zip(*(vectors[i] for i in g), strict=True)] for g in groups]
        gone, grown = set(), [list(group) for group in groups]
        for a in range(0, len(groups), 2):
            odd = range(1, len(groups), 2)
            if not odd:
                continue
            best = max(odd, key=lambda b: (cosine(means[a], means[b]), -b))
            if cosine(means[a], means[best]) > threshold:
                grown[best] += groups[a]
                gone.add(a)
        groups = sorted(sorted(group) for i, group in enumerate(grown) if i not in gone)
    return len(groups)


def clustered(grid, seed, leading=(2, 2), dim=6):
    """Tokens around three directions, so that some pairs are very similar and some aren't."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*leading, grid.tokens)
    centres = torch.randn(3, dim, generator=generator)
    which = torch.randint(3, shape, generator=generator)
    return centres[which] + 0.35 * torch.randn(*shape, dim, generator=generator)


def vote(features, grid, config):
    pyramid = ToMeScaler(ToMeScaler.Config()).pyramid(VisualTokens(features, grid))
    return RedundancyRouter(config)(pyramid, NO_WORDS)


def test_worked_example():
    # Angles in degrees, A = {0, 2, 4}, B = {1, 3, 5}: 0 and 4 are 10 degrees from 1, 2 is 10 from 3. Above cos 15:
    # three left, at 10, 95 and 175. Round two: A = {10, 175}, B = {95}; 85 and 80 degrees apart. Above cos 81 the
    # latter merges as well; then 10 and about 121 are left, 111 apart.
    degrees = torch.tensor([0.0, 10, 90, 100, 20, 175]).deg2rad()
    features = torch.stack([degrees.cos(), degrees.sin()], -1)[None]
    for angle, rounds, left in ((5, 4, 6), (15, 1, 3), (15, 4, 3), (81, 1, 3), (81, 2, 2), (81, 4, 2), (112, 3, 1)):
        assert tokens_left(features, math.cos(math.radians(angle)), rounds).tolist() == [left]


def test_votes_say_what_is_missing():
    # Three tokens left of six; levels keep 1, 1, 2, 3 and 6 tokens.
    degrees = torch.tensor([0.0, 10, 90, 100, 20, 175]).deg2rad()
    features = torch.stack([degrees.cos(), degrees.sin()], -1)[None]
    ballots = vote(features, Grid(2, 3), RedundancyRouter.Config(threshold=math.cos(math.radians(15))))
    assert torch.allclose(ballots.logits, torch.tensor([[[-2.0, -2.0, -0.5, 0.0, 0.0]]]))
    assert ballots.segments == (Grid(1, 1),)


@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(5, 5), Grid(3, 7), Grid(8, 8)], ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.97, 0.9, 0.5, -0.2])
def test_transcription(grid, seed, threshold):
    features = clustered(grid, seed)
    for rounds in (1, 2, 5):
        left = tokens_left(features, threshold, rounds)
        for batch in range(2):
            for view in range(2):
                expected = transcribed(features[batch, view].double().tolist(), threshold, rounds)
                assert int(left[batch, view]) == expected


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), config=st.sampled_from(CONFIGS))
def test_views_and_images_are_alone(grid, seed, config):
    features = clustered(grid, seed, leading=(3, 2))
    together = vote(features, grid, config).logits
    for batch in range(3):
        for view in range(2):
            alone = vote(features[batch, view : view + 1], grid, config).logits
            assert torch.equal(alone[0], together[batch, view])


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), rounds=st.integers(1, 6))
def test_no_more_is_left_at_a_lower_threshold_or_after_another_round(grid, seed, rounds):
    features = clustered(grid, seed)
    one = [tokens_left(features, threshold, 1) for threshold in (0.99, 0.8, 0.3, -1.0)]
    assert all(bool((a >= b).all()) for a, b in pairwise(one))
    assert bool((tokens_left(features, 0.8, rounds) >= tokens_left(features, 0.8, rounds + 1)).all())
    fewest = torch.full((2, 2), grid.tokens)
    for _ in range(rounds):
        fewest = (fewest // 2).clamp(min=1)
    assert bool((tokens_left(features, -1.0, rounds) >= fewest).all())


@settings(max_examples=40, deadline=None)
@given(grid=st.builds(Grid, st.integers(1, 12), st.integers(1, 12)))
def test_the_coarsest_published_level_can_be_reached(grid):
    left = tokens_left(torch.ones(1, grid.tokens, 2), 0.9, RedundancyRouter.Config().rounds)
    assert int(left) <= ToMeScaler(ToMeScaler.Config()).granularities(grid)[0]


def test_equal_tokens_are_redundant_and_at_threshold_one_none_is():
    features = torch.ones(1, 16, 2)
    assert tokens_left(features, 0.9, 4).tolist() == [1]
    assert tokens_left(torch.randn(1, 1, 7).expand(1, 16, 7), 1.0, 4).tolist() == [16]


def test_blank_tokens_resemble_nothing():
    assert tokens_left(torch.zeros(1, 16, 2), 0.5, 4).tolist() == [16]


def test_shapes_do_not_depend_on_features():
    with FakeTensorMode() as mode:
        left = tokens_left(mode.from_tensor(torch.ones(2, 3, 16, 4)), 0.5, 4)
    assert left.shape == (2, 3)


@pytest.mark.parametrize("case", [case for config in CONFIGS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_conformance_is_complete(levels):
    check_component(RedundancyRouter.Config(), levels=levels).raise_if_bad()


def test_refusals():
    with pytest.raises(ConfigError, match=r"threshold=1.2 is no cosine; use a number from -1 to 1"):
        RedundancyRouter(RedundancyRouter.Config(threshold=1.2))
    with pytest.raises(ConfigError, match=r"rounds=0 is no count; use an integer of 1 or more"):
        RedundancyRouter(RedundancyRouter.Config(rounds=0))

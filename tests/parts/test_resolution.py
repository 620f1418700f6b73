"""The scaler of smaller images: its ladder, what it keeps, what it shows the router."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import compressor
from tokenflex.contracts import Grid, Instruction
from tokenflex.errors import ConfigError
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.routers.reconstruction import ReconstructionRouter
from tokenflex.scalers.resolution import ResolutionScaler
from tokenflex.testing import strategies
from tokenflex.voters.mean import MeanVoter
from tokenflex.voters.position_weighted import PositionWeightedVoter


def scaler(**settings):
    return ResolutionScaler.Config(**settings).build()


def assembly(router=None, voter=None, **settings):
    parts = (router or AVGRouter.Config(heads=2, text_tokens=3), voter or PositionWeightedVoter.Config())
    return compressor.build(
        ResolutionScaler.Config(**settings), *parts, ArgmaxPolicy.Config(), dim=8, grid=Grid(24, 24)
    ).eval()


def test_defaults_are_about_the_published_numbers_of_tokens():
    assert scaler().granularities(Grid(24, 24)) == (36, 64, 144, 256, 576)
    assert scaler().viewed(Grid(24, 24)) == (Grid(3, 3), Grid(6, 6))


def test_pooling_and_resolution_make_one_ladder():
    both = scaler(shares=(0.25, 0.25, 1.0, 1.0), pooling=((2, 2), (1, 1), (1, 2), (1, 1)))
    assert both.granularities(Grid(8, 8)) == (4, 16, 32, 64)


BAD = {
    "empty": ({"shares": ()}, "shares is empty"),
    "zero": ({"shares": (0.0, 1.0)}, "share 0.0 is none of"),
    "negative": ({"shares": (-0.5, 1.0)}, "share -0.5 is none of"),
    "above": ({"shares": (0.5, 1.5)}, "share 1.5 is none of"),
    "falling": ({"shares": (0.5, 0.25, 1.0)}, r"from coarse to fine, e.g. \(0.25, 0.5, 1.0\)"),
    "no whole image": ({"shares": (0.25, 0.5)}, "add 1.0 at the end"),
    "not a number": ({"shares": ("a", 1.0)}, "shares"),
    "infinite": ({"shares": (float("nan"), 1.0)}, "shares"),
    "too few windows": ({"shares": (0.5, 1.0), "pooling": ((1, 1),)}, "1 windows for 2 shares"),
    "no window": ({"shares": (0.5, 1.0), "pooling": ((0, 1), (1, 1))}, "window"),
    "last pools": ({"shares": (0.5, 1.0), "pooling": ((2, 2), (2, 2))}, "the last level keeps all tokens"),
    "dearer first": ({"shares": (0.5, 1.0, 1.0), "pooling": ((1, 1), (2, 2), (1, 1))}, "level 1 .* keeps 0.25 of"),
    "nothing shown": ({"view_windows": ()}, "windows is empty"),
    "shown the wrong way": ({"view_windows": ((1, 1), (2, 2))}, "coarse to fine"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_ladder_is_refused(name):
    settings, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        scaler(**settings)


shares = st.lists(st.floats(0.01, 1.0), max_size=5).map(lambda some: (*sorted(some), 1.0))


@given(shares, strategies.grids(30))
def test_numbers_of_tokens_rise_with_the_shares(found, grid):
    made = scaler(shares=found)
    counts = made.granularities(grid)
    assert all(a <= b for a, b in itertools.pairwise(counts))
    assert counts[-1] == grid.tokens
    for share, image in zip(found, made.image_grids(grid), strict=True):
        for side, full in ((image.rows, grid.rows), (image.cols, grid.cols)):
            assert side == 1 or 0 <= full * share**0.5 - side + 1e-5 < 1 + 1e-5


@given(strategies.images(leading=st.sampled_from(strategies.LEADING)))
def test_every_level_keeps_its_image_as_it_is(image):
    made = scaler()
    for level in range(made.num_levels):
        scaled = made.scale(image, level)
        assert torch.equal(scaled.features, image.features)
        assert scaled.grid == image.grid
        assert scaled.averages


def test_the_router_is_sized_by_what_it_sees():
    parts = assembly()
    assert parts.voter.segments == (Grid(3, 3), Grid(6, 6), Grid(1, 3))
    single = assembly(view_windows=((1, 1),))
    assert single.voter.segments == (Grid(6, 6), Grid(1, 3))


@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(4, 9), Grid(1, 1)])
@pytest.mark.parametrize("router", [AVGRouter.Config(heads=2), AVGRouter.Config(heads=2, rows="pooled")])
def test_scores_cover_every_level(grid, router):
    parts = assembly(router=router)
    image = strategies.VisualTokens(torch.randn(2, grid.tokens, 8), grid, row=0)
    words = Instruction(torch.randn(4, 8), torch.ones(4, dtype=torch.bool))
    table, seen = parts.judged([image], [words])
    assert table.shape == (1, 5)
    assert bool(table.isfinite().all())
    assert [one.features.shape[-2] for one in seen.stacks[0].levels][-1] == grid.tokens


def test_routers_that_compare_levels_are_told_apart():
    parts = assembly(router=ReconstructionRouter.Config(), voter=MeanVoter.Config())
    image = strategies.VisualTokens(torch.randn(1, 36, 8), Grid(6, 6), row=0)
    words = Instruction(torch.randn(4, 8), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="votes about 2 levels, and ResolutionScaler has 5"):
        parts.scores([image], [words])

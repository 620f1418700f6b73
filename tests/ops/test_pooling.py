"""Laws of windows over grids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import keep_only, over_views
from tokenflex.ops.pooling import (
    PYRAMID,
    check_windows,
    pool_frames,
    pool_windows,
    pooled_grid,
    resample_grid,
    window_assignment,
)

SIDES = st.integers(1, 13)
GRIDS = st.builds(Grid, SIDES, SIDES)
WINDOWS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def random_features(grid, *leading, dim=3):
    generator = torch.Generator().manual_seed(grid.tokens)
    return torch.randn(*leading, grid.tokens, dim, generator=generator)


def test_the_published_pyramid():
    assert [pooled_grid(Grid(24, 24), window).tokens for window in PYRAMID] == [36, 72, 144, 288, 576]
    assert pooled_grid(Grid(24, 24), (1, 2)) == Grid(24, 12)


@given(GRIDS, WINDOWS)
def test_shapes_are_known_in_advance(grid, window):
    pooled = pool_windows(random_features(grid, 2, 3), grid, window)
    assert pooled.shape == (2, 3, pooled_grid(grid, window).tokens, 3)


@given(GRIDS, WINDOWS, st.floats(-5, 5))
def test_constants_are_preserved(grid, window, value):
    pooled = pool_windows(torch.full((1, grid.tokens, 2), value), grid, window)
    torch.testing.assert_close(pooled, torch.full_like(pooled, value))


@given(GRIDS, WINDOWS)
def test_each_cell_is_the_mean_of_the_tokens_assigned_to_it(grid, window):
    features = random_features(grid, dim=2)
    assignment = window_assignment(grid, window)
    pooled = pool_windows(features[None], grid, window)[0]
    for cell in range(pooled_grid(grid, window).tokens):
        torch.testing.assert_close(pooled[cell], features[assignment == cell].mean(0))


@given(st.integers(1, 4), st.integers(1, 4), WINDOWS, st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_windows_compose_where_they_divide(rows, cols, first, second):
    grid = Grid(rows * first[0] * second[0], cols * first[1] * second[1])
    features = random_features(grid, 1)
    twice = pool_windows(pool_windows(features, grid, first), pooled_grid(grid, first), second)
    once = pool_windows(features, grid, (first[0] * second[0], first[1] * second[1]))
    torch.testing.assert_close(twice, once)


@given(st.integers(1, 5), st.integers(1, 5), WINDOWS)
def test_the_mean_is_preserved_where_windows_divide(rows, cols, window):
    grid = Grid(rows * window[0], cols * window[1])
    features = random_features(grid, 2)
    torch.testing.assert_close(pool_windows(features, grid, window).mean(1), features.mean(1))


def test_partial_cells_average_the_tokens_that_exist():
    features = torch.arange(9.0)[None, :, None]
    pooled = pool_windows(features, Grid(3, 3), (2, 2))
    assert pooled.flatten().tolist() == [2.0, 3.5, 6.5, 8.0]


def test_window_one_is_the_identity():
    features = random_features(Grid(4, 5), 2)
    assert pool_windows(features, Grid(4, 5), (1, 1)) is features
    assert resample_grid(features, Grid(4, 5), Grid(4, 5)) is features


def test_half_precision_is_rounded_once():
    features = random_features(Grid(8, 8), 1, dim=4).bfloat16()
    pooled = pool_windows(features, Grid(8, 8), (4, 4))
    exact = pool_windows(features.float(), Grid(8, 8), (4, 4)).bfloat16()
    assert torch.equal(pooled, exact)


@given(GRIDS, GRIDS, st.floats(-3, 3))
def test_resampling_preserves_constants(grid, target, value):
    resized = resample_grid(torch.full((1, grid.tokens, 2), value), grid, target)
    torch.testing.assert_close(resized, torch.full((1, target.tokens, 2), value), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((), "windows is empty"),
        (((0, 1),), "integers >= 1"),
        (((1, 1), (2, 2)), r"coarse to fine: \(2, 2\) is longer, taller or wider than \(1, 1\)"),
        (((3, 2), (1, 3)), "coarse to fine"),
    ],
)
def test_bad_windows_are_refused(windows, message):
    with pytest.raises(ConfigError, match=message):
        check_windows(windows)


@given(st.data())
def test_keep_only_numbers_the_kept_tokens_in_order(data):
    tokens = data.draw(st.integers(1, 30))
    kept = torch.tensor(data.draw(st.lists(st.integers(0, tokens - 1), unique=True, min_size=1)))
    assignment = keep_only(tokens, kept)
    assert assignment[kept].tolist() == list(range(len(kept)))
    assert int((assignment == -1).sum()) == tokens - len(kept)
    assert over_views(assignment, torch.zeros(2, 3, tokens, 4)).shape == (2, 3, tokens)


@given(st.integers(1, 7), st.integers(1, 4), st.booleans())
def test_frames_merge_into_the_mean_of_those_that_exist(views, time, stacked):
    shape = (2, views, 3, 2) if stacked else (views, 3, 2)
    features = torch.randn(shape)
    merged, into = pool_frames(features, time)
    pieces = features.split(time, dim=-3)
    torch.testing.assert_close(merged, torch.stack([piece.mean(-3) for piece in pieces], dim=-3))
    if into is not None:
        assert into.tolist() == [i // time for i in range(views)]
    else:
        assert time == 1 or views == 1


@pytest.mark.parametrize(
    "windows", [((1, 2, 2, 2),), ((2,),), ((0, 2, 2),), ((1, 1, 1), (2, 1, 1)), ((1, 1), (2, 1, 1))]
)
def test_bad_windows_in_time_are_refused(windows):
    with pytest.raises(ConfigError, match="window"):
        check_windows(windows, timed=True)


def test_only_average_pooling_knows_time():
    check_windows(((2, 2, 2), (1, 1)), timed=True)
    with pytest.raises(ConfigError, match=r"\(2, 2, 2\) is not a \(rows, cols\) pair"):
        check_windows(((2, 2, 2), (1, 1)))

"""Adaptive average pooling: windows, proportions, means."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import scalers
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_resampling.adaptive_pool import AdaptivePoolScaler, nearest_window, pooled_sides

Config = AdaptivePoolScaler.Config
GRIDS = st.builds(Grid, st.integers(1, 30), st.integers(1, 30))
SIDES = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda sides: tuple(sorted(sides)))


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(sides=(1, 2, 3, 4, 5, 7)))], ids=str)
def test_conformance(case):
    case()


def test_registered():
    assert scalers.provider("adaptive-pool").distribution == "tokenflex-resampling"
    assert scalers.get("adaptive-pool").__name__ == "AdaptivePoolScaler"


def test_worked_example():
    # 2 x 3 tokens, side 1: shorter side 2, 1 * sqrt(2/3) = 0.82 -> 1 window; 1 / 1 = 1 window across: all six tokens.
    # Side 2: 2 * sqrt(2/3) = 1.63 -> 2 rows; 4 / 2 = 2 columns. Across, windows cover 0..1 and 1..2 (floor(3/2) = 1,
    # ceil(3/2) - 1 = 1): tokens (0, 2) and (2, 4) of the first row, means 1 and 3. Their centres are 0.5 and 1.5, so
    # the middle column is equally near to both and goes to the first.
    features = torch.tensor([[0.0, 0], [2, 0], [4, 0], [6, 6], [8, 6], [10, 6]])[None]
    scaler = AdaptivePoolScaler(Config(sides=(1, 2)))
    tokens = VisualTokens(features, Grid(2, 3))
    coarse, middle, finest = scaler.pyramid(tokens)
    assert coarse.features.tolist() == [[[5.0, 3.0]]]
    assert middle.grid == Grid(2, 2)
    assert middle.features.tolist() == [[[1.0, 0.0], [3.0, 0.0], [7.0, 6.0], [9.0, 6.0]]]
    assert middle.assignment.tolist() == [[0, 0, 1, 2, 2, 3]]
    assert (coarse.averages, middle.averages, finest.averages) == (True, False, True)
    assert finest.features is features


def transcribed(features, grid, target):
    """The paper's formula, window by window."""
    out = []
    for u in range(target.rows):
        top, bottom = math.floor(u * grid.rows / target.rows), math.ceil((u + 1) * grid.rows / target.rows) - 1
        for v in range(target.cols):
            left, right = math.floor(v * grid.cols / target.cols), math.ceil((v + 1) * grid.cols / target.cols) - 1
            inside = [r * grid.cols + c for r in range(top, bottom + 1) for c in range(left, right + 1)]
            out.append(sum(features[i] for i in inside) / len(inside))
    return torch.stack(out)


def nearest(grid, target):
    """For every token the first of the windows whose centres are nearest, by comparing all."""

    def along(count, windows):
        spans = [(math.floor(u * count / windows), math.ceil((u + 1) * count / windows) - 1) for u in range(windows)]
        return [min(range(windows), key=lambda u: abs(2 * i - sum(spans[u]))) for i in range(count)]

    return [r * target.cols + c for r in along(grid.rows, target.rows) for c in along(grid.cols, target.cols)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", [Grid(24, 24), Grid(17, 23), Grid(9, 4), Grid(1, 13)])
def test_equals_the_formula(image, grid, seed):
    scaler = AdaptivePoolScaler(Config(sides=(2, 3, 5, 7)))
    tokens = image(grid, 2, dim=3, seed=seed)
    for level, target in enumerate(scaler.layouts(grid)):
        scaled = scaler.scale(tokens, level)
        for view in range(2):
            torch.testing.assert_close(scaled.features[view], transcribed(tokens.features[view], grid, target))
            assert scaled.assignment[view].tolist() == nearest(grid, target)


@given(grid=GRIDS, side=st.integers(1, 40))
def test_proportions(grid, side):
    target = pooled_sides(grid, side)
    assert 1 <= target.rows <= grid.rows
    assert 1 <= target.cols <= grid.cols
    assert (target.rows <= target.cols) == (grid.rows <= grid.cols) or target.rows == target.cols
    if target.rows < grid.rows and target.cols < grid.cols:
        assert abs(target.tokens - side * side) <= min(target.rows, target.cols) / 2
    if grid.rows == grid.cols:
        assert target == Grid(min(side, grid.rows), min(side, grid.rows))
    mirrored = pooled_sides(Grid(grid.cols, grid.rows), side)
    assert mirrored == Grid(target.cols, target.rows) or grid.rows == grid.cols


@given(grid=st.builds(Grid, st.integers(1, 200), st.integers(1, 200)))
def test_counts_never_decrease(grid):
    counts = [pooled_sides(grid, side).tokens for side in range(1, 60)]
    assert counts == sorted(counts)


@given(tokens=st.integers(1, 60), data=st.data())
def test_every_window_is_nearest_to_some_token(tokens, data):
    windows = data.draw(st.integers(1, tokens))
    found = nearest_window(tokens, windows)
    assert found.unique().tolist() == list(range(windows))
    assert bool((found.diff() >= 0).all())


@given(grid=GRIDS, sides=SIDES)
def test_batch_equals_singles_and_views_are_independent(image, grid, sides):
    scaler = AdaptivePoolScaler(Config(sides=sides))
    many = image(grid, 2, 3, dim=2)
    for level, layout in enumerate(scaler.layouts(grid)):
        together = scaler.scale(many, level)
        assert together.features.shape[-2] == layout.tokens
        for i in range(2):
            for view in range(3):
                alone = scaler.scale(VisualTokens(many.features[i, view : view + 1], grid), level)
                torch.testing.assert_close(together.features[i, view], alone.features[0])
                assert torch.equal(together.assignment[i, view], alone.assignment[0])


def test_mirroring_the_image_mirrors_the_tokens(image):
    scaler, grid = AdaptivePoolScaler(Config(sides=(3, 5))), Grid(7, 11)
    tokens = image(grid)
    mirrored = VisualTokens(tokens.features.unflatten(1, (7, 11)).flip(2).flatten(1, 2), grid)
    for level, layout in enumerate(scaler.layouts(grid)):
        straight, back = scaler.scale(tokens, level).features, scaler.scale(mirrored, level).features
        flipped = back.unflatten(1, (layout.rows, layout.cols)).flip(2).flatten(1, 2)
        torch.testing.assert_close(straight, flipped)


def test_half_precision_is_rounded_once(image):
    scaler, grid = AdaptivePoolScaler(Config(sides=(1,))), Grid(16, 16)
    tokens = image(grid, dtype=torch.bfloat16)
    expected = tokens.features.float().mean(-2, keepdim=True).bfloat16()
    assert torch.equal(scaler.scale(tokens, 0).features, expected)


@pytest.mark.parametrize(
    ("sides", "message"),
    [((), "sides is empty"), ((0,), "side 0 is no number"), ((True,), "each item of it an integer"),
     ((8, 4), "4 comes after 8")],
)  # fmt: skip
def test_bad_settings(sides, message):
    with pytest.raises(ConfigError, match=message):
        AdaptivePoolScaler(Config(sides=sides))

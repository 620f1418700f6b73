"""Attention within regions: the formula, ragged windows, and average pooling at the start."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import scalers
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.pooling import window_assignment
from tokenflex.testing import cases
from tokenflex_resampling.region_attention import RegionAttentionScaler, regions

Config = RegionAttentionScaler.Config
GRIDS = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))
WINDOWS = ((3, 3), (2, 3), (1, 2), (1, 1))


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(windows=((3, 2), (2, 2)), heads=1))], ids=str)
def test_conformance(case):
    case()


def test_registered():
    assert scalers.provider("region-attention").distribution == "tokenflex-resampling"
    assert scalers.get("region-attention").__name__ == "RegionAttentionScaler"


def test_worked_example():
    # Tokens (2, 0) and (0, 4) in one window; mean (1, 2). Layer-normed (affine 1, 0): (1, -1), (-1, 1), mean (-1, 1).
    # q = ln 3 / sqrt 2 * (-1, 1) and k = the normed tokens: scores are (-2, 2) * ln 3 / sqrt 2 / sqrt 2, that is -ln 3
    # and ln 3, so weights are 1/3 : 3 = 0.1 : 0.9. Values are the normed tokens, together
    # 0.1 (1, -1) + 0.9 (-1, 1) = (-0.8, 0.8).
    # With out = identity the token is (1, 2) + (-0.8, 0.8) = (0.2, 2.8).
    scaler = Config(windows=((1, 2), (1, 1)), heads=1).build(dim=2)
    with torch.no_grad():
        for linear, scale in (
            (scaler.query, math.log(3) / math.sqrt(2)),
            (scaler.key, 1),
            (scaler.value, 1),
            (scaler.out, 1),
        ):
            linear.weight.copy_(scale * torch.eye(2))
            if linear.bias is not None:
                linear.bias.zero_()
    tokens = VisualTokens(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]), Grid(1, 2))
    scaled = scaler.scale(tokens, 0)
    torch.testing.assert_close(scaled.features, torch.tensor([[[0.2, 2.8]]]), atol=1e-4, rtol=0)
    assert scaled.assignment.tolist() == [[0, 0]]
    assert not scaled.averages


@torch.no_grad()
@given(grid=GRIDS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_starts_as_average_pooling(image, built, grid, dtype):
    scaler = built(Config(windows=WINDOWS))
    pool = scalers.get("average-pool").Config(windows=WINDOWS).build()
    tokens = image(grid, 2, 2, dtype=dtype)
    assert scaler.layouts(grid) == pool.layouts(grid)
    for scaled, pooled in zip(scaler.pyramid(tokens), pool.pyramid(tokens), strict=True):
        assert torch.equal(scaled.features, pooled.features)
        assert torch.equal(scaled.assignment, pooled.assignment)
        assert scaled.grid == pooled.grid


def transcribed(scaler, features, grid, window):
    """The formula for one view, window by window and head by head."""
    where, dim = window_assignment(grid, window), features.shape[-1]
    width, out = dim // scaler.heads, []

    def normed(x):
        return F.layer_norm(x, (dim,), scaler.norm.weight, scaler.norm.bias)

    for kept in range(int(where.max()) + 1):
        inside = [features[i] for i in range(grid.tokens) if int(where[i]) == kept]
        mean = sum(inside) / len(inside)
        query = scaler.query(normed(mean))
        keys, values = [scaler.key(normed(x)) for x in inside], [scaler.value(normed(x)) for x in inside]
        mixed = torch.zeros(dim)
        for head in range(scaler.heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in keys])
            weights = scores.exp() / scores.exp().sum()
            mixed[part] = sum(weight * value[part] for weight, value in zip(weights, values, strict=True))
        out.append(mean + scaler.out(mixed))
    return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(5, 7), Grid(1, 7), Grid(4, 1)])
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_the_formula(image, built, grid, heads, seed):
    scaler = built(Config(windows=WINDOWS, heads=heads), noise=0.3)
    tokens = image(grid, 2, seed=seed)
    for level, (window, layout) in enumerate(zip(WINDOWS, scaler.layouts(grid), strict=True)):
        scaled = scaler.scale(tokens, level)
        for view in range(2):
            source = tokens.features[view]
            expected = source if layout == grid else transcribed(scaler, source, grid, window)
            torch.testing.assert_close(scaled.features[view], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@given(grid=GRIDS, seed=st.integers(0, 5))
def test_a_region_sees_itself_only(image, built, grid, seed):
    """Other tokens of the view may change."""
    scaler = built(Config(windows=((2, 3), (1, 1))), noise=0.3)
    tokens, other = image(grid, seed=seed), image(grid, seed=seed + 100)
    inside = window_assignment(grid, (2, 3)) == 0
    mixed = VisualTokens(torch.where(inside[:, None], tokens.features, other.features), grid)
    torch.testing.assert_close(scaler.scale(mixed, 0).features[:, 0], scaler.scale(tokens, 0).features[:, 0])


@torch.no_grad()
@given(grid=GRIDS, seed=st.integers(0, 5))
def test_order_within_a_region_is_unseen(image, built, grid, seed):
    scaler, window = built(Config(windows=((9, 9), (1, 1))), noise=0.3), (9, 9)
    tokens = image(grid, seed=seed)
    order = torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(seed))
    shuffled = VisualTokens(tokens.features[:, order], grid)
    torch.testing.assert_close(scaler.scale(shuffled, 0).features, scaler.scale(tokens, 0).features)
    assert regions(tokens.features, grid, window).shape == (1, 1, 81, 8)


@torch.no_grad()
@given(grid=GRIDS)
def test_batch_equals_singles_and_views_are_independent(image, built, grid):
    scaler = built(Config(windows=WINDOWS), noise=0.3)
    many = image(grid, 2, 3)
    for level, layout in enumerate(scaler.layouts(grid)):
        together = scaler.scale(many, level)
        assert together.features.shape[-2] == layout.tokens
        assert together.grid == layout
        for i in range(2):
            for view in range(3):
                alone = scaler.scale(VisualTokens(many.features[i, view : view + 1], grid), level)
                torch.testing.assert_close(together.features[i, view], alone.features[0])


def test_regions_by_hand():
    # 2 x 3 tokens in windows of 2 x 2: columns 0-1, then column 2 filled up with zeros.
    rows = torch.arange(1.0, 7.0)[:, None]
    assert regions(rows, Grid(2, 3), (2, 2))[..., 0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"windows": ()}, "windows is empty"), ({"windows": ((2, 0), (1, 1))}, "is not a .rows, cols. pair"),
     ({"heads": 5}, "heads=5 must divide the language model's width, 8")],
)  # fmt: skip
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings).build(dim=8)

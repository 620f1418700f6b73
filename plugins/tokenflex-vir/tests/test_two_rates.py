"""Two rates: blocks, their means, the MLP of four tokens side by side."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import scalers
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_vir import TwoRatesScaler

Config = TwoRatesScaler.Config
GRIDS = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("case", [*cases(Config()), *cases(Config(merge="mean"))], ids=str)
def test_conformance(case):
    case()


def test_registered():
    assert scalers.provider("two-rates").distribution == "tokenflex-vir"
    assert scalers.get("two-rates").__name__ == "TwoRatesScaler"


def random_weights(scaler, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scaler.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return scaler


def test_worked_example():
    # 2 x 3 tokens: a full block (0, 1, 3, 4) and a half one (2, 5). In both entries the means are
    # (0 + 2 + 4 + 6) / 4 = 3 and (8 + 10) / 2 = 9. Fresh, both merges give just these.
    values = torch.tensor([0.0, 2, 8, 4, 6, 10])
    tokens = VisualTokens(torch.stack([values, values], dim=-1)[None], Grid(2, 3))
    for merge in ("mean", "shuffle"):
        scaler = Config(merge=merge).build(dim=2)
        coarse, fine = scaler.pyramid(tokens)
        assert coarse.features.tolist() == [[[3.0, 3.0], [9.0, 9.0]]]
        assert coarse.assignment.tolist() == [[0, 0, 1, 0, 0, 1]]
        assert coarse.grid == Grid(1, 2)
        assert coarse.averages == (merge == "mean")
        assert fine.features is tokens.features
    # With an MLP whose last layer adds (1, -1) whatever it sees: (4, 2) and (10, 8).
    with torch.no_grad():
        scaler.merge[-1].bias.copy_(torch.tensor([1.0, -1.0]))
    assert scaler.scale(tokens, 0).features.tolist() == [[[4.0, 2.0], [10.0, 8.0]]]


def transcribed(scaler, features, grid):
    """Block by block: its tokens row-major, its mean where there is none, layer norm, MLP, plus the mean."""
    norm, first, _, last = scaler.merge
    out = []
    for r in range(0, grid.rows, 2):
        for c in range(0, grid.cols, 2):
            places = [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
            there = [features[i * grid.cols + j] for i, j in places if i < grid.rows and j < grid.cols]
            mean = sum(there) / len(there)
            side = torch.cat(
                [features[i * grid.cols + j] if i < grid.rows and j < grid.cols else mean for i, j in places]
            )
            out.append(mean + last(F.gelu(first(F.layer_norm(side, side.shape, norm.weight, norm.bias)))))
    return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 5), Grid(1, 6), Grid(2, 1)])
def test_equals_the_formula(image, grid, seed):
    scaler = random_weights(Config().build(dim=6), seed)
    tokens = image(grid, 2, seed=seed)
    features = scaler.scale(tokens, 0).features
    for view in range(2):
        torch.testing.assert_close(features[view], transcribed(scaler, tokens.features[view], grid))


@torch.no_grad()
@given(grid=GRIDS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_starts_as_average_pooling(image, grid, dtype):
    pool = scalers.get("average-pool").Config(windows=((2, 2), (1, 1))).build()
    tokens = image(grid, 2, 2, dtype=dtype)
    for merge in ("mean", "shuffle"):
        scaler = Config(merge=merge).build(dim=6)
        assert scaler.layouts(grid) == pool.layouts(grid)
        for scaled, pooled in zip(scaler.pyramid(tokens), pool.pyramid(tokens), strict=True):
            assert torch.equal(scaled.features, pooled.features)
            assert torch.equal(scaled.assignment, pooled.assignment)
            assert scaled.grid == pooled.grid


@torch.no_grad()
@given(grid=GRIDS)
def test_batch_equals_singles_and_views_are_independent(image, grid):
    scaler = random_weights(Config().build(dim=6))
    many = image(grid, 2, 3)
    together = scaler.scale(many, 0)
    assert together.features.shape[-2] == -(-grid.rows // 2) * -(-grid.cols // 2)
    for i in range(2):
        for view in range(3):
            alone = scaler.scale(VisualTokens(many.features[i, view : view + 1], grid), 0)
            torch.testing.assert_close(together.features[i, view], alone.features[0])


def test_gradients_reach_every_parameter(image):
    scaler = random_weights(Config().build(dim=6))
    scaler.scale(image(Grid(3, 5)), 0).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in scaler.parameters())


def test_bad_settings():
    with pytest.raises(ConfigError, match="merge='max' is none of 'shuffle', 'mean'"):
        Config(merge="max").build(dim=6)

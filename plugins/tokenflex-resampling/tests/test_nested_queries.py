"""Nested learned queries: attention, nestedness, where tokens come from."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tokenflex import scalers
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.testing import cases
from tokenflex_resampling.nested_queries import NestedQueriesScaler, claims, members
from tokenflex_resampling.places import grid_places, sine_codes, spread_places

Config = NestedQueriesScaler.Config
GRIDS = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))
VARIANTS = (Config(), Config(queries=(1, 3, 5), heads=1), Config(queries=(2, 8, 40), positions=False, heads=4))


@pytest.mark.parametrize("case", [case for config in VARIANTS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


def test_registered():
    assert scalers.provider("nested-queries").distribution == "tokenflex-resampling"
    assert scalers.get("nested-queries").__name__ == "NestedQueriesScaler"


def test_worked_example():
    # Two tokens (2, 0) and (0, 4); layer-normed they are (1, -1) and (-1, 1). The query is (ln 3 / sqrt 2, 0): scores
    # are (ln 3 / sqrt 2) * (+-1) / sqrt 2 = +- ln 3 / 2, so the softmax is e^(ln 3) : 1 = 3/4 : 1/4, and the token is
    # 3/4 (2, 0) + 1/4 (0, 4) = (1.5, 1). Its claim is the first token; the second has nowhere else to go.
    scaler = Config(queries=(1,), heads=1, positions=False).build(dim=2)
    with torch.no_grad():
        scaler.queries.weight.copy_(torch.tensor([[math.log(3) / math.sqrt(2), 0.0]]))
    scaled = scaler.scale(VisualTokens(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]), Grid(1, 2)), 0)
    torch.testing.assert_close(scaled.features, torch.tensor([[[1.5, 1.0]]]), atol=1e-4, rtol=0)
    assert scaled.assignment.tolist() == [[0, 0]]
    assert scaled.grid is None
    assert not scaled.averages


def test_claims_by_hand():
    # Both queries look at token 1 most. The first takes it, the second has to take token 2; token 0 goes to query 1,
    # which looks at it more (0.3 > 0.1).
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.5, 0.2]])
    taken = claims(weights)
    assert taken.tolist() == [1, 0]
    assert members(weights, taken).tolist() == [1, 0, 0]


def test_claims_give_ties_to_the_first():
    weights = torch.full((3, 5), 0.2)
    assert claims(weights).tolist() == [0, 1, 2]
    assert members(weights, claims(weights)).tolist() == [0, 1, 2, 0, 0]


def transcribed_places(grid, width):
    """Codes of the cells' centres: sines, then cosines, of both coordinates at frequencies pi * 32^(k / (K - 1))."""
    bands, rows = width // 4, []
    for r in range(grid.rows):
        for c in range(grid.cols):
            place = ((r + 0.5) / grid.rows, (c + 0.5) / grid.cols)
            row = []
            for x in place:
                angles = [math.pi * 32 ** (k / max(bands - 1, 1)) * x for k in range(bands)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(row + [0.0] * (width - len(row)))
    return torch.tensor(rows)


def transcribed(scaler, features, grid, count):
    """The formula for one view, query by query and head by head, and the greedy assignment."""
    dim, heads = features.shape[-1], scaler.heads
    width = dim // heads
    codes = transcribed_places(grid, width) if scaler.positions else torch.zeros(grid.tokens, width)
    keys = [scaler.key.weight @ F.layer_norm(x, (dim,)) + codes[i].repeat(heads) for i, x in enumerate(features)]
    values = [scaler.value.weight @ x for x in features]
    out, looks = [], []
    for query in scaler.queries.weight[:count]:
        mixed, mean = torch.zeros(dim), torch.zeros(len(features))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in keys])
            weights = scores.exp() / scores.exp().sum()
            mixed[part] = sum(weight * value[part] for weight, value in zip(weights, values, strict=True))
            mean += weights / heads
        out.append(scaler.out.weight @ mixed + scaler.out.bias)
        looks.append(mean)
    owner = [-1] * len(features)
    for i, look in enumerate(looks):
        free = [j for j in range(len(features)) if owner[j] < 0]
        owner[max(free, key=lambda j: look[j])] = i
    for j in range(len(features)):
        if owner[j] < 0:
            owner[j] = max(range(count), key=lambda i: looks[i][j])
    return torch.stack(out), owner


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 7), Grid(1, 9)])
@pytest.mark.parametrize("config", [Config(queries=(2, 5, 8), heads=2), Config(queries=(3,), positions=False)])
def test_equals_the_formula(image, built, config, grid, seed):
    scaler = built(config, noise=0.3)
    tokens = image(grid, 2, seed=seed)
    for level, count in enumerate(config.queries):
        scaled = scaler.scale(tokens, level)
        for view in range(2):
            features, owner = transcribed(scaler, tokens.features[view], grid, count)
            torch.testing.assert_close(scaled.features[view], features, atol=1e-5, rtol=1e-4)
            assert scaled.assignment[view].tolist() == owner


@given(grid=GRIDS)
def test_counts(grid):
    scaler = Config(queries=(4, 16, 64)).build(dim=8)
    n = grid.tokens
    assert scaler.granularities(grid) == (min(4, n), min(16, n), min(64, n), n)
    assert scaler.layouts(grid)[-1] == grid
    for count, layout in zip((4, 16, 64), scaler.layouts(grid), strict=False):
        assert layout == (count if count < n else grid)


@given(grid=GRIDS)
def test_few_tokens_are_left_alone(image, grid):
    scaler = Config(queries=(4, 16)).build(dim=8)
    tokens = image(grid, 2)
    for level, layout in enumerate(scaler.layouts(grid)):
        if layout == grid:
            assert scaler.scale(tokens, level).features is tokens.features


@torch.no_grad()
@given(grid=GRIDS, positions=st.booleans())
def test_levels_are_nested(image, built, grid, positions):
    scaler = built(Config(queries=(1, 4, 9, 30), positions=positions), noise=0.1)
    tokens = image(grid, 2)
    learned = [level for level in scaler.pyramid(tokens) if level.grid is None]
    for coarse in learned:
        for fine in learned:
            if fine.features.shape[-2] >= coarse.features.shape[-2]:
                count = coarse.features.shape[-2]
                assert torch.equal(fine.features[..., :count, :], coarse.features)
    for level, scaled in enumerate(scaler.pyramid(tokens)):
        torch.testing.assert_close(scaler.scale(tokens, level).features, scaled.features)


@torch.no_grad()
@given(grid=GRIDS, seed=st.integers(0, 5))
def test_every_query_has_a_token_and_every_token_a_query(image, built, grid, seed):
    scaler = built(Config(queries=(3, 7)), noise=0.1)
    tokens = image(grid, 2, 2, seed=seed)
    for scaled in scaler.pyramid(tokens):
        kept = scaled.features.shape[-2]
        for view in scaled.assignment.flatten(0, 1):
            assert view.unique().tolist() == list(range(kept))


@torch.no_grad()
@given(grid=GRIDS, seed=st.integers(0, 5))
def test_without_positions_the_order_of_tokens_is_unseen(image, built, grid, seed):
    scaler = built(Config(queries=(2, 5), positions=False))
    tokens = image(grid, seed=seed)
    order = torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(seed))
    shuffled = VisualTokens(tokens.features[:, order], grid)
    for level in range(2):
        if scaler.layouts(grid)[level] == grid:
            continue
        one, other = scaler.scale(tokens, level), scaler.scale(shuffled, level)
        torch.testing.assert_close(other.features, one.features)
        assert torch.equal(other.assignment, one.assignment[:, order])


@torch.no_grad()
@given(grid=GRIDS)
def test_batch_equals_singles_and_views_are_independent(image, built, grid):
    scaler = built(Config(queries=(2, 6)), noise=0.1)
    many = image(grid, 2, 3)
    for level in range(scaler.num_levels):
        together = scaler.scale(many, level)
        for i in range(2):
            for view in range(3):
                alone = scaler.scale(VisualTokens(many.features[i, view : view + 1], grid), level)
                torch.testing.assert_close(together.features[i, view], alone.features[0])
                assert torch.equal(together.assignment[i, view], alone.assignment[0])


@torch.no_grad()
@pytest.mark.parametrize("positions", [True, False])
def test_a_fresh_token_is_a_weighted_mean(image, positions):
    """So it lies, entry by entry, between the smallest and the largest of the view."""
    scaler = Config(positions=positions).build(dim=32)
    tokens = image(Grid(24, 24), dim=32)
    seen = scaler.scale(tokens, 3).features
    assert bool((seen <= tokens.features.amax(-2, keepdim=True) + 1e-5).all())
    assert bool((seen >= tokens.features.amin(-2, keepdim=True) - 1e-5).all())


@torch.no_grad()
def test_a_fresh_query_looks_around_its_place():
    """On an image that says where each of its tokens is, it sees its own place, roughly, even at the border."""
    grid = Grid(24, 24)
    places = grid_places(grid, torch.zeros(()))
    scaler = Config(queries=(16,), heads=1).build(dim=256)
    features = torch.zeros(1, grid.tokens, 256)
    features[0, :, :2] = places
    seen = scaler.scale(VisualTokens(features, grid), 0).features[0, :, :2]
    assert float((seen - spread_places(16)).abs().mean()) < 0.1


@given(count=st.integers(4, 300))
def test_places_are_spread(count):
    places = spread_places(count)
    assert places[0].tolist() == [0.5, 0.5]
    assert float(((places >= 0) & (places < 1)).float().mean()) == 1.0
    quarters = (places >= 0.5).long() @ torch.tensor([2, 1])
    found = torch.bincount(quarters, minlength=4)
    assert int(found.min()) >= count // 5


def test_codes_tell_distances_only():
    codes = sine_codes(torch.tensor([[0.1, 0.2], [0.3, 0.5], [0.6, 0.1], [0.8, 0.4]]), 34)
    products = codes @ codes.T
    torch.testing.assert_close(products[0, 1], products[2, 3])
    torch.testing.assert_close(products.diagonal(), torch.full((4,), 16.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"queries": ()}, "queries is empty"), ({"queries": (0,)}, "0 is no number of queries"),
     ({"queries": (True,)}, "each item of it an integer"), ({"queries": (9, 4)}, "4 comes after 9"),
     ({"heads": 3}, "heads=3 must divide the language model's width, 8"), ({"heads": 0}, "heads=0 must")],
)  # fmt: skip
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings).build(dim=8)

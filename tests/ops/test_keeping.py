"""Keeping, merging and numbering tokens, against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import (
    RATIOS,
    check_ratios,
    cosines,
    everything,
    in_grid_order,
    kept_layouts,
    merged,
    selected,
)
from tokenflex.testing.strategies import LEADING, grids, images


def test_the_published_counts():
    assert kept_layouts(Grid(24, 24), RATIOS) == (36, 72, 144, 288, Grid(24, 24))


@given(grids(12), st.lists(st.floats(0.001, 1), max_size=4))
def test_layouts_go_from_coarse_to_fine_and_keep_something(grid, ratios):
    layouts = kept_layouts(grid, check_ratios([*sorted(ratios), 1.0]))
    counts = [kept if isinstance(kept, int) else kept.tokens for kept in layouts]
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= counts[-1] == grid.tokens
    assert all(isinstance(kept, int) == (count < grid.tokens) for kept, count in zip(layouts, counts, strict=True))


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((), r"ratios=\(\) must end with 1.0"),
        ((0.5,), "must end with 1.0"),
        ((0.0, 1.0), "ratio 0.0 is no share"),
        ((1.5, 1.0), "ratio 1.5 is no share"),
        ((0.5, 0.25, 1.0), "must go from coarse to fine: 0.25 comes after 0.5"),
    ],
)
def test_bad_ratios(ratios, message):
    with pytest.raises(ConfigError, match=message):
        check_ratios(ratios)


@given(images(leading=st.sampled_from(LEADING)), st.data())
def test_selected_keeps_what_was_picked_in_grid_order(image, data):
    count = data.draw(st.integers(1, image.grid.tokens))
    seed = data.draw(st.integers(0, 99))
    noise = torch.rand(image.features.shape[:-1], generator=torch.Generator().manual_seed(seed))
    picked = noise.argsort(-1)[..., :count]
    scaled = selected(image, picked)
    rows = zip(picked.flatten(0, -2), scaled.assignment.flatten(0, -2), scaled.features.flatten(0, -3),
               image.features.flatten(0, -3), strict=True)  # fmt: skip
    for places, assignment, kept, source in rows:
        in_order = sorted(places.tolist())
        assert [i for i, into in enumerate(assignment.tolist()) if into >= 0] == in_order
        assert assignment[in_order].tolist() == list(range(count))
        assert torch.equal(kept, source[in_order])
    assert (scaled.grid == image.grid) == (count == image.grid.tokens)


@given(images(), st.data())
def test_merged_is_the_mean_of_each_group(image, data):
    tokens = image.grid.tokens
    kept = data.draw(st.integers(1, tokens))
    seed = data.draw(st.integers(0, 99))
    order = torch.rand(image.features.shape[:-1], generator=torch.Generator().manual_seed(seed)).argsort(-1)
    assignment = order % kept
    scaled = merged(image, assignment, kept)
    for view in range(len(image.features)):
        for group in range(kept):
            members = [i for i in range(tokens) if int(assignment[view, i]) == group]
            if kept < tokens:
                torch.testing.assert_close(scaled.features[view, group], image.features[view, members].mean(0))
    if kept == tokens:
        assert torch.equal(scaled.features, image.features)


@given(st.integers(1, 6), st.integers(0, 99))
def test_groups_are_numbered_by_their_first_token(kept, seed):
    generator = torch.Generator().manual_seed(seed)
    assignment = torch.cat([torch.arange(kept), torch.randint(-1, kept, (5,), generator=generator)])
    assignment = assignment[torch.randperm(len(assignment), generator=generator)][None]
    numbered = in_grid_order(assignment, kept)[0].tolist()
    seen = [n for n in dict.fromkeys(numbered) if n >= 0]
    assert seen == list(range(kept))
    pairs = {(a, b) for a, b in zip(assignment[0].tolist(), numbered, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs})
    assert all((a == -1) == (b == -1) for a, b in pairs)


def test_everything_is_everything():
    image = VisualTokens(torch.randn(2, 6, 3), Grid(2, 3))
    scaled = everything(image)
    assert scaled.features is image.features
    assert scaled.assignment.tolist() == [list(range(6))] * 2
    assert scaled.grid == Grid(2, 3)


def test_cosines():
    left, right = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [-3.0, -4.0]])
    torch.testing.assert_close(cosines(left, right), torch.tensor([[0.96, -1.0], [0.0, 0.0]]))
    with torch.autocast("cpu", torch.bfloat16):
        assert cosines(left.bfloat16(), right.bfloat16()).dtype == torch.float32

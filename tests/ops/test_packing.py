"""Anyres packing against transformers, worked counts, and its own laws."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_onevision import LlavaOnevisionProcessor

from tokenflex.contracts import Grid
from tokenflex.ops import packing
from tokenflex.ops.packing import NEWLINE, anyres_count, anyres_order, kept_spans, shrunk_canvas, visible_span
from tokenflex.ops.pooling import PYRAMID, pooled_grid

CLIP, SIGLIP = Grid(24, 24), Grid(27, 27)
TILES = st.sampled_from([Grid(1, 1), Grid(1, 2), Grid(2, 1), Grid(2, 2), Grid(1, 3), Grid(3, 1)])
MANY_TILES = st.builds(Grid, st.integers(1, 6), st.integers(1, 6))
SIZES = st.tuples(st.integers(20, 2000), st.integers(20, 2000))
LEVELS = st.sampled_from(PYRAMID)


def counts(size, tiles, unpad):
    return [anyres_count(tiles, CLIP, pooled_grid(CLIP, window), size, unpad) for window in PYRAMID]


@pytest.mark.parametrize(
    ("size", "unpad", "expected"),
    [
        ((480, 640), "geometric", [166, 306, 594, 1188, 2340]),
        ((480, 640), "released", [166, 202, 594, 738, 2340]),
        ((672, 672), "geometric", [192, 384, 744, 1488, 2928]),
        ((672, 672), "released", [192, 228, 744, 888, 2928]),
    ],
)
def test_known_counts(size, unpad, expected):
    assert counts(size, Grid(2, 2), unpad) == expected


@given(TILES, SIZES)
def test_unpooled_canvas_is_cut_as_transformers_does(tiles, size):
    canvas = Grid(tiles.rows * 24, tiles.cols * 24)
    (top, bottom), (left, right) = visible_span(canvas, size)
    cells = torch.arange(canvas.tokens).view(1, canvas.rows, canvas.cols)
    assert torch.equal(unpad_image(cells, size)[0], cells[0, top:bottom, left:right])


@given(TILES, SIZES, LEVELS, st.sampled_from(["geometric", "released"]))
def test_counts_known_in_advance(tiles, size, window, unpad):
    kept = pooled_grid(CLIP, window)
    order = torch.from_numpy(anyres_order(tiles, CLIP, kept, size, unpad).copy())
    assert len(order) == anyres_count(tiles, CLIP, kept, size, unpad)


@given(TILES, SIZES, LEVELS, st.sampled_from(["geometric", "released"]))
def test_every_token_at_most_once_and_the_whole_image_first(tiles, size, window, unpad):
    kept = pooled_grid(CLIP, window)
    order = torch.from_numpy(anyres_order(tiles, CLIP, kept, size, unpad).copy())
    assert order[: kept.tokens].tolist() == list(range(kept.tokens))
    tokens = order[order != NEWLINE]
    assert len(tokens.unique()) == len(tokens)
    assert int(tokens.max()) < kept.tokens * (tiles.tokens + 1)


@given(TILES, SIZES, LEVELS)
def test_geometric_keeps_every_cell_that_shows_the_image(tiles, size, window):
    kept = pooled_grid(CLIP, window)
    rows, cols = kept_spans(tiles, CLIP, kept, size, "geometric")
    fine = visible_span(Grid(tiles.rows * 24, tiles.cols * 24), size)
    assume(all(end > start for start, end in fine))
    for coarse, exact, step in ((rows, fine[0], window[0]), (cols, fine[1], window[1])):
        assert coarse[0] * step <= exact[0]
        assert coarse[1] * step >= exact[1]
        assert coarse[0] * step > exact[0] - step
        assert coarse[1] * step < exact[1] + step


@given(TILES, st.tuples(st.integers(100, 2000), st.integers(100, 2000)))
def test_coarser_levels_cost_fewer_tokens(tiles, size):
    found = counts(size, tiles, "geometric")
    assert found == sorted(found)


def test_tokens_without_a_grid_are_all_kept():
    order = torch.from_numpy(anyres_order(Grid(1, 2), CLIP, 5, (300, 600), "geometric").copy())
    assert order.tolist() == [*range(15), NEWLINE]
    assert anyres_count(Grid(1, 2), CLIP, 5, (300, 600), "geometric") == 16


def test_local_tiles_are_stitched_row_by_row():
    order = torch.from_numpy(anyres_order(Grid(1, 2), Grid(2, 2), Grid(2, 2), (100, 200), "geometric").copy())
    assert order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE, 6, 7, 10, 11, NEWLINE]


@given(MANY_TILES, SIZES, st.integers(1, 9))
def test_shrunk_counts_are_those_of_onevisions_processor(tiles, size, most):
    says = SimpleNamespace(vision_aspect_ratio=f"anyres_max_{most}")
    cells, newlines = LlavaOnevisionProcessor._get_unpadded_features(says, *size, 27, 27, tiles.rows, tiles.cols)
    assume(cells > 0)
    assert anyres_count(tiles, SIGLIP, SIGLIP, size, "geometric", most) == SIGLIP.tokens + cells + newlines


@given(MANY_TILES, st.tuples(st.integers(100, 2000), st.integers(100, 2000)))
def test_coarser_levels_cost_fewer_tokens_where_canvases_are_shrunk(tiles, size):
    found = [anyres_count(tiles, SIGLIP, pooled_grid(SIGLIP, w), size, "geometric", 9) for w in PYRAMID]
    assert found == sorted(set(found))


def test_a_canvas_is_shrunk_only_where_it_is_clearly_too_large():
    assert shrunk_canvas(Grid(11, 11), 100) == Grid(11, 11)
    assert shrunk_canvas(Grid(12, 12), 100) == Grid(10, 10)
    assert shrunk_canvas(Grid(1, 9), 1) == Grid(1, 3)


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 3), st.data())
def test_no_cell_that_shows_the_image_is_lost_whatever_the_side(side, window, tiles, data):
    """Sides the window doesn't divide keep a partial cell at each tile's edge."""
    kept = pooled_grid(Grid(side, side), (window, window)).rows
    assume(side % kept or side == kept * window)
    start = data.draw(st.integers(0, side * tiles - 1))
    end = data.draw(st.integers(start + 1, side * tiles))
    touched = {index // side * kept + index % side // window for index in range(start, end)}
    first, last = packing._pooled_span((start, end), side, kept)
    assert first <= min(touched)
    assert max(touched) < last <= kept * tiles

"""Where an anyres image's tokens go in the prompt: LLaVA-NeXT's packing as index arithmetic.

The whole image (view 0) comes first, row-major. The local tiles are stitched to their canvas, the rows and
columns that hold only padding are cut off, and every remaining row ends with a newline.

Cutting (``unpad``):
    ``geometric``  the padding is found on the unpooled canvas and carried over to pooled cells, so no cell
                   that shows part of the image is lost. On an unpooled canvas this is what transformers does.
    ``released``   the padding is found on the pooled canvas as if its cells were square, as in the published
                   AVG-LLaVA code, which crops real rows at 1:2 cells (72 and 288 tokens).

Shrinking (``most``): LLaVA-OneVision resamples a canvas that exceeds ``most`` tiles' worth of tokens. Here the rule
is applied to tiles of the level's own size, so a level costs the same share of the finest one whether an image is
shrunk or not.
"""

import functools
import math
from typing import Literal

import numpy as np
from jaxtyping import Int

from tokenflex.contracts import Grid

NEWLINE = -1
Unpad = Literal["geometric", "released"]
Span = tuple[int, int]


def visible_span(canvas: Grid, image_size: tuple[int, int], *, digits: int | None = 7) -> tuple[Span, Span]:
    """Half-open (rows, cols) of ``canvas`` that show the image.

    Args:
        image_size: (height, width) of the image before it was fitted into the canvas, in pixels.
        digits: decimals the fitted side is rounded to before it is truncated (transformers); None truncates
            at once (the published code).
    """
    height, width = image_size

    def fitted(side: int, scale: float) -> int:
        return int(side * scale if digits is None else round(side * scale, digits))

    if width / height > canvas.cols / canvas.rows:
        padding = (canvas.rows - fitted(height, canvas.cols / width)) // 2
        return (padding, canvas.rows - padding), (0, canvas.cols)
    padding = (canvas.cols - fitted(width, canvas.rows / height)) // 2
    return (0, canvas.rows), (padding, canvas.cols - padding)


def _pooled_span(span: Span, side: int, kept: int) -> Span:
    """The pooled cells that a span of unpooled ones touches; sides are per tile.

    Where ``kept`` divides the side, cells are equal. Elsewhere it leaves open how the side was pooled (10 cells to 4:
    windows of 3, or resampling), and cells of any way count.
    """
    start, end = span
    if end <= start:
        return 0, 0
    windows = [w for w in range(1, side + 1) if side % kept and -(-side // w) == kept]

    def cells(index: int) -> list[int]:
        tile, inside = divmod(index, side)
        return [tile * kept + cell for cell in (inside * kept // side, *(inside // window for window in windows))]

    return min(cells(start)), max(cells(end - 1)) + 1


def kept_spans(tiles: Grid, grid: Grid, kept: Grid, image_size: tuple[int, int], unpad: Unpad) -> tuple[Span, Span]:
    """Half-open (rows, cols) of the pooled canvas that stay.

    Args:
        tiles: how many local tiles, down and across.
        grid: tokens of one tile before pooling.
        kept: tokens of one tile after pooling.
    """
    if unpad == "released":
        canvas = Grid(tiles.rows * kept.rows, tiles.cols * kept.cols)
        return visible_span(canvas, image_size, digits=None)
    canvas = Grid(tiles.rows * grid.rows, tiles.cols * grid.cols)
    rows, cols = visible_span(canvas, image_size)
    return _pooled_span(rows, grid.rows, kept.rows), _pooled_span(cols, grid.cols, kept.cols)


@functools.lru_cache(maxsize=4096)
def anyres_count(
    tiles: Grid, grid: Grid, kept: Grid | int, image_size: tuple[int, int], unpad: Unpad, most: int | None = None
) -> int:
    """Tokens an image costs, newlines included, without making the order.

    Args:
        most: tiles' worth of tokens beyond which the canvas is shrunk; None never shrinks it.
    """
    if isinstance(kept, int):
        return (tiles.tokens + 1) * kept + 1
    (top, bottom), (left, right) = kept_spans(tiles, grid, kept, image_size, unpad)
    canvas = Grid(max(bottom - top, 0), max(right - left, 0))
    if most is not None:
        canvas = shrunk_canvas(canvas, most * kept.tokens)
    return kept.tokens + canvas.rows * (canvas.cols + 1)


def shrunk_canvas(canvas: Grid, most: int) -> Grid:
    """The grid that a canvas of clearly more than ``most`` tokens is resampled to; a smaller one as it is."""
    ratio = math.sqrt(canvas.tokens / most)
    if ratio <= 1.1:
        return canvas
    return Grid(max(int(canvas.rows // ratio), 1), max(int(canvas.cols // ratio), 1))


def visible_cells(
    tiles: Grid, grid: Grid, kept: Grid, image_size: tuple[int, int], unpad: Unpad
) -> Int[np.ndarray, "rows cols"]:
    """The canvas without padding, as indices into the flattened ``(views, kept)`` tokens."""
    local = np.arange(kept.tokens, kept.tokens * (tiles.tokens + 1))
    canvas = local.reshape(tiles.rows, tiles.cols, kept.rows, kept.cols).swapaxes(1, 2)
    canvas = canvas.reshape(tiles.rows * kept.rows, tiles.cols * kept.cols)
    (top, bottom), (left, right) = kept_spans(tiles, grid, kept, image_size, unpad)
    return canvas[top:bottom, left:right]


@functools.lru_cache(maxsize=512)
def anyres_order(
    tiles: Grid, grid: Grid, kept: Grid | int, image_size: tuple[int, int], unpad: Unpad
) -> Int[np.ndarray, " packed"]:
    """The packed order as indices into the flattened ``(views, kept)`` tokens, ``NEWLINE`` for newlines.

    Tokens that form no grid are all kept, tile after tile, with one newline at the end. The array can't be written.
    """
    if isinstance(kept, int):
        order = np.append(np.arange((tiles.tokens + 1) * kept), NEWLINE)
    else:
        cut = visible_cells(tiles, grid, kept, image_size, unpad)
        lines = np.pad(cut, ((0, 0), (0, 1)), constant_values=NEWLINE)
        order = np.concatenate([np.arange(kept.tokens), lines.ravel()])
    order.flags.writeable = False
    return order

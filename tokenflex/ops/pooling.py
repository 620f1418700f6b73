"""Windows over a grid of tokens: their layout, their assignment, their averages.

The published pyramid (AVG-LLaVA, arXiv 2410.02745, section 3.1) is one average pool per granularity with
stride = window; on CLIP-L/14-336's 24 x 24 grid it keeps 36, 72, 144, 288 and 576 tokens.
"""

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError

Windows = tuple[tuple[int, int], ...]
"""(rows, cols) per level, coarse to fine."""
TimedWindows = tuple[tuple[int, ...], ...]
"""(rows, cols) or (time, rows, cols) per level, coarse to fine."""

PYRAMID: Windows = ((4, 4), (2, 4), (2, 2), (1, 2), (1, 1))
"""(rows, cols) of the published windows, coarse to fine."""


def check_windows(windows: TimedWindows, *, timed: bool = False) -> None:
    """Refuse windows that aren't pairs of positive integers, coarse to fine.

    Args:
        timed: whether (time, rows, cols) will do as well.

    Raises:
        ConfigError: with the offending window and the rule it breaks.
    """
    if not windows:
        raise ConfigError("windows is empty; give at least one (rows, cols) pair, e.g. ((2, 2), (1, 1)).")
    for window in windows:
        if len(window) not in ((2, 3) if timed else (2,)) or any(not isinstance(n, int) or n < 1 for n in window):
            form = "(rows, cols) or (time, rows, cols)" if timed else "a (rows, cols) pair"
            raise ConfigError(f"window {window!r} is not {form} of integers >= 1.")
    for coarse, fine in itertools.pairwise(windows):
        if any(a < b for a, b in zip(in_time(coarse), in_time(fine), strict=True)):
            raise ConfigError(
                f"windows {windows} must go from coarse to fine: {fine} is longer, taller or wider than {coarse} "
                "before it."
            )


def in_time(window: tuple[int, ...]) -> tuple[int, int, int]:
    """(time, rows, cols) of a window; pairs don't merge frames."""
    time, rows, cols = (1, *window) if len(window) == 2 else window
    return time, rows, cols


def pooled_grid(grid: Grid, window: tuple[int, int]) -> Grid:
    """Grid left by windows of ``window``; partial windows at the lower and right edge count."""
    return Grid(-(-grid.rows // window[0]), -(-grid.cols // window[1]))


def window_assignment(grid: Grid, window: tuple[int, int]) -> Int[Tensor, " tokens"]:
    """For every token of ``grid`` the row-major index of the window it lies in."""
    rows = torch.arange(grid.rows) // window[0]
    cols = torch.arange(grid.cols) // window[1]
    return (rows[:, None] * pooled_grid(grid, window).cols + cols[None, :]).flatten()


def pool_windows(
    features: Float[Tensor, "*batch tokens dim"], grid: Grid, window: tuple[int, int]
) -> Float[Tensor, "*batch kept dim"]:
    """Average each window over the tokens that exist in it.

    Half-precision features are averaged in float32 and rounded once, as in the published code.

    Args:
        features: ``(*batch, tokens, dim)``, row-major on ``grid``.
        window: (rows, cols) of a window, equal to its stride.
    """
    if window == (1, 1):
        return features
    leading = features.shape[:-2]
    planes = rearrange(features.flatten(0, -3), "n (r c) d -> n d r c", r=grid.rows, c=grid.cols)
    pooled = F.avg_pool2d(planes.float(), window, ceil_mode=True, count_include_pad=False)
    return rearrange(pooled, "n d r c -> n (r c) d").to(features.dtype).unflatten(0, leading)


def resample_grid(
    features: Float[Tensor, "*batch tokens dim"], grid: Grid, target: Grid
) -> Float[Tensor, "*batch kept dim"]:
    """Bilinear resampling with antialiasing to the ``target`` grid."""
    if target == grid:
        return features
    leading = features.shape[:-2]
    planes = rearrange(features.flatten(0, -3), "n (r c) d -> n d r c", r=grid.rows, c=grid.cols)
    resized = F.interpolate(
        planes.float(), (target.rows, target.cols), mode="bilinear", align_corners=False, antialias=True
    )
    return rearrange(resized, "n d r c -> n (r c) d").to(features.dtype).unflatten(0, leading)


def pool_frames(
    features: Float[Tensor, "*batch views tokens dim"], time: int
) -> tuple[Float[Tensor, "*batch kept_views tokens dim"], Int[Tensor, " views"] | None]:
    """(means of ``time`` frames in a row, kept view of every frame); the last window holds the frames that are left.

    The kept views are on the CPU.
    """
    views = features.shape[-3]
    if time == 1 or views == 1:
        return features, None
    into = torch.arange(views) // time
    total = features.new_zeros(*features.shape[:-3], -(-views // time), *features.shape[-2:], dtype=torch.float32)
    sums = total.index_add(-3, into.to(features.device), features.float())
    mean = sums / into.bincount()[:, None, None].to(features.device)
    return mean.to(features.dtype), into

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

PYRAMID: Windows = ((4, 4), (2, 4), (2, 2), (1, 2), (1, 1))
"""(rows, cols) of the published windows, coarse to fine."""


def check_windows(windows: Windows) -> None:
    """Refuse windows that aren't pairs of positive integers, coarse to fine.

    Raises:
        ConfigError: with the offending window and the rule it breaks.
    """
    if not windows:
        raise ConfigError("windows is empty; give at least one (rows, cols) pair, e.g. ((2, 2), (1, 1)).")
    for window in windows:
        if len(window) != 2 or any(not isinstance(side, int) or side < 1 for side in window):
            raise ConfigError(f"window {window!r} is not a (rows, cols) pair of integers >= 1.")
    for coarse, fine in itertools.pairwise(windows):
        if fine[0] > coarse[0] or fine[1] > coarse[1]:
            raise ConfigError(
                f"windows {windows} must go from coarse to fine: {fine} is taller or wider than {coarse} before it."
            )


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

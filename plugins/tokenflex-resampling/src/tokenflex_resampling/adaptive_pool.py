"""Adaptive average pooling: grids of about n x n tokens, whatever the grid they come from."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import over_views
from tokenflex.ops.keeping import everything


class AdaptivePoolScaler(Scaler):
    """Averages windows whose number is given and whose size follows from the grid (TokenFLEX, arXiv 2504.03154).

    Of ``n`` windows along a side of ``N`` tokens, window ``u`` covers tokens ``floor(u N / n)`` to
    ``ceil((u + 1) N / n) - 1``; where ``n`` doesn't divide ``N`` neighbours overlap. The finest level is the untouched
    grid.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            sides: per level, coarse to fine, the side of the grid that a square image is pooled to; others are pooled
                to about as many tokens, see `pooled_sides`. One more level, all tokens, follows.
        """

        sides: tuple[int, ...] = (6, 8, 12, 16)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_sides(self.sides)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.sides = config.sides

    @property
    def num_levels(self) -> int:
        """One per side, and the untouched grid."""
        return len(self.sides) + 1

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grids of windows, and the grid itself."""
        return (*(pooled_sides(grid, side) for side in self.sides), grid)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Average the windows of ``level``; a token is assigned to the window whose centre is nearest."""
        grid = tokens.grid
        target = grid if level == len(self.sides) else pooled_sides(grid, self.sides[level])
        if target == grid:
            return everything(tokens)
        rows = nearest_window(grid.rows, target.rows)
        cols = nearest_window(grid.cols, target.cols)
        return ScaledTokens(
            features=_pooled(tokens.features, grid, target),
            assignment=over_views((rows[:, None] * target.cols + cols).flatten(), tokens.features),
            grid=target,
            averages=grid.rows % target.rows == 0 and grid.cols % target.cols == 0,
        )


def check_sides(sides: Sequence[int]) -> None:
    """Refuse sides that aren't positive integers, coarse to fine.

    Raises:
        ConfigError: with the offending side and the rule it breaks.
    """
    if not sides:
        raise ConfigError("sides is empty; give at least one side in tokens, e.g. (8, 16).")
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise ConfigError(f"side {side!r} is no number of tokens; use integers >= 1.")
    for coarse, fine in itertools.pairwise(sides):
        if coarse > fine:
            raise ConfigError(f"sides {tuple(sides)} must go from coarse to fine: {fine} comes after {coarse}.")


def pooled_sides(grid: Grid, side: int) -> Grid:
    """A grid of about ``side`` x ``side`` tokens in the proportions of ``grid``.

    The shorter side of H x W gets ``side * sqrt(shorter / longer)`` windows, rounded half up; the longer one what
    ``side`` x ``side`` divided by that is, rounded half up. Both are at least 1 and at most what the grid has. A square
    grid gives a square. The count never decreases with ``side``, and where the grid has enough tokens on both sides it
    is off ``side`` x ``side`` by at most half the shorter side's windows.
    """
    shorter, longer = sorted((grid.rows, grid.cols))
    few = min(max(int(side * math.sqrt(shorter / longer) + 0.5), 1), shorter)
    many = min((2 * side * side + few) // (2 * few), longer)
    return Grid(few, many) if grid.rows <= grid.cols else Grid(many, few)


def nearest_window(tokens: int, windows: int) -> Int[Tensor, " tokens"]:
    """For every token of a side the window whose centre is nearest, the lower of two equally near.

    Every window gets at least one token, as centres are at least one token apart.
    """
    number = torch.arange(windows)
    first = number * tokens // windows
    end = ((number + 1) * tokens + windows - 1) // windows
    twice_centre = first + end - 1
    return (2 * torch.arange(tokens)[:, None] - twice_centre).abs().argmin(-1)


def _pooled(
    features: Float[Tensor, "*batch views tokens dim"], grid: Grid, target: Grid
) -> Float[Tensor, "*batch views kept dim"]:
    """Half precision is averaged in float32 and rounded once."""
    planes = rearrange(features.flatten(0, -3), "n (r c) d -> n d r c", r=grid.rows, c=grid.cols)
    pooled = F.adaptive_avg_pool2d(planes.float(), (target.rows, target.cols))
    return rearrange(pooled, "n d r c -> n (r c) d").to(features.dtype).unflatten(0, features.shape[:-2])

"""Tokens at random: the baseline every selection method must beat."""

from dataclasses import dataclass

import torch

from tokenflex.contracts import Grid, ScaledTokens, VisualTokens
from tokenflex.ops.keeping import selected_alike
from tokenflex.ops.pooling import pooled_grid
from tokenflex.scalers.levels import WindowScaler


class RandomScaler(WindowScaler):
    """Keeps as many tokens as average pooling would, at random places, in their original order.

    The places depend on ``seed`` and the grid alone, so a batch equals its singles; coarser levels keep a
    subset of finer ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WindowScaler.Config):
        """Attributes: ``windows``, whose counts are kept, coarse to fine; ``seed`` of the places."""

        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.seed = config.seed

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The counts average pooling would keep; a grid only where all tokens are kept."""
        kept = (pooled_grid(grid, window) for window in self.windows)
        return tuple(k if k == grid else k.tokens for k in kept)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the first tokens of a seeded permutation."""
        layout, generator = self.layouts(tokens.grid)[level], torch.Generator().manual_seed(self.seed)
        count, grid = (layout, None) if isinstance(layout, int) else (layout.tokens, layout)
        picked = torch.randperm(tokens.grid.tokens, generator=generator)[:count].sort().values
        return selected_alike(tokens, picked, grid)

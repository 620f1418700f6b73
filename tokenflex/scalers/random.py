"""Tokens at random: the baseline every selection method must beat."""

from dataclasses import dataclass

import torch

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import keep_only, on_device_of, over_views
from tokenflex.ops.pooling import PYRAMID, Windows, check_windows, pooled_grid


class RandomScaler(Scaler):
    """Keeps as many tokens as average pooling would, at random places, in their original order.

    The places depend on ``seed`` and the grid alone, so a batch equals its singles; coarser levels keep a
    subset of finer ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``windows``, whose counts are kept, coarse to fine; ``seed`` of the places."""

        windows: Windows = PYRAMID
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_windows(config.windows)
        self.windows, self.seed = config.windows, config.seed

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The counts average pooling would keep; a grid only where all tokens are kept."""
        kept = (pooled_grid(grid, window) for window in self.windows)
        return tuple(k if k == grid else k.tokens for k in kept)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the first tokens of a seeded permutation."""
        grid, layout = tokens.grid, self.layouts(tokens.grid)[level]
        generator = torch.Generator().manual_seed(self.seed)
        count = layout if isinstance(layout, int) else layout.tokens
        picked = torch.randperm(grid.tokens, generator=generator)[:count].sort().values
        return ScaledTokens(
            features=tokens.features[..., on_device_of(picked, tokens.features), :],
            assignment=over_views(keep_only(grid.tokens, picked), tokens.features),
            grid=None if isinstance(layout, int) else layout,
            averages=True,
        )

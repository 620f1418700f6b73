"""One token per window: the baseline that shows what averaging adds."""

from dataclasses import dataclass

import torch

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import keep_only, on_device_of, over_views
from tokenflex.ops.pooling import PYRAMID, Windows, check_windows, pooled_grid


class StrideScaler(Scaler):
    """Keeps the middle token of each window (lower right of the middle for even sides) and drops the rest.

    Partial windows at the edges keep the last token that exists.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``windows``, (rows, cols) in tokens per level, coarse to fine."""

        windows: Windows = PYRAMID

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_windows(config.windows)
        self.windows = config.windows

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid that each window leaves."""
        return tuple(pooled_grid(grid, window) for window in self.windows)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Pick the middle token of each window of ``level``."""
        grid, (high, wide) = tokens.grid, self.windows[level]
        kept = pooled_grid(grid, (high, wide))
        rows = (torch.arange(kept.rows) * high + high // 2).clamp(max=grid.rows - 1)
        cols = (torch.arange(kept.cols) * wide + wide // 2).clamp(max=grid.cols - 1)
        picked = (rows[:, None] * grid.cols + cols[None, :]).flatten()
        return ScaledTokens(
            features=tokens.features[..., on_device_of(picked, tokens.features), :],
            assignment=over_views(keep_only(grid.tokens, picked), tokens.features),
            grid=kept,
            averages=True,
        )

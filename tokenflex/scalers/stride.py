"""One token per window: the baseline that shows what averaging adds."""

import torch

from tokenflex.contracts import ScaledTokens, VisualTokens
from tokenflex.ops.keeping import selected_alike
from tokenflex.ops.pooling import pooled_grid
from tokenflex.scalers.levels import WindowScaler


class StrideScaler(WindowScaler):
    """Keeps the middle token of each window (lower right of the middle for even sides) and drops the rest.

    Partial windows at the edges keep the last token that exists.
    """

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Pick the middle token of each window of ``level``."""
        grid, (high, wide) = tokens.grid, self.windows[level]
        kept = pooled_grid(grid, (high, wide))
        rows = (torch.arange(kept.rows) * high + high // 2).clamp(max=grid.rows - 1)
        cols = (torch.arange(kept.cols) * wide + wide // 2).clamp(max=grid.cols - 1)
        return selected_alike(tokens, (rows[:, None] * grid.cols + cols[None, :]).flatten(), kept)

"""Bilinear resampling of the token grid, after the vision tower: the baseline of another filter than the mean."""

import torch

from tokenflex.contracts import ScaledTokens, VisualTokens
from tokenflex.ops.assignment import over_views
from tokenflex.ops.pooling import pooled_grid, resample_grid
from tokenflex.scalers.levels import WindowScaler


class ResizeScaler(WindowScaler):
    """Resamples the tokens of the whole image (bilinear, antialiased) to the grid average pooling would leave.

    The vision tower has seen the image at full size, so this says nothing of smaller images: their baseline is the
    scaler `resolution`, which makes the image smaller before it is encoded.
    """

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Resample to the grid of ``level``; a source token is assigned to the cell it lies in."""
        grid, target = tokens.grid, pooled_grid(tokens.grid, self.windows[level])
        rows = torch.arange(grid.rows) * target.rows // grid.rows
        cols = torch.arange(grid.cols) * target.cols // grid.cols
        return ScaledTokens(
            features=resample_grid(tokens.features, grid, target),
            assignment=over_views((rows[:, None] * target.cols + cols).flatten(), tokens.features),
            grid=target,
        )

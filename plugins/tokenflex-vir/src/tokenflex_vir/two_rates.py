"""Two rates: blocks of 2 x 2 tokens merged into one, or all tokens."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens, one_of
from tokenflex.ops.assignment import over_views
from tokenflex.ops.keeping import everything
from tokenflex.ops.pooling import pool_windows, pooled_grid, window_assignment

BLOCK = (2, 2)


class TwoRatesScaler(Scaler):
    """A quarter of the tokens, or all (InternVL3.5-Flash, arXiv 2508.18265).

    ``shuffle``: ``y = mean + MLP(LayerNorm(the block's four tokens side by side))``, trained; the MLP's last layer
    starts as zero, so a fresh scaler gives the means. Blocks at the lower and right edge that aren't full are filled up
    with their own mean. ``mean``: the means alone, without parameters.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``merge``, how a block becomes one token: ``shuffle`` (trained) or ``mean``."""

        merge: Annotated[str, one_of("shuffle", "mean")] = "shuffle"

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config)
        self.merge: nn.Sequential | None = None
        if config.merge == "shuffle":
            last = nn.Linear(dim, dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.merge = nn.Sequential(nn.LayerNorm(4 * dim), nn.Linear(4 * dim, dim), nn.GELU(), last)

    @property
    def num_levels(self) -> int:
        """Merged and untouched."""
        return 2

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid of blocks, and the grid itself."""
        return pooled_grid(grid, BLOCK), grid

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Merge each block at level 0; a grid of one token has nothing to merge."""
        grid, target = tokens.grid, pooled_grid(tokens.grid, BLOCK)
        if level == 1 or target == grid:
            return everything(tokens)
        features = pool_windows(tokens.features, grid, BLOCK)
        if self.merge is not None:
            features = self._shuffled(self.merge, tokens, features)
        assignment = over_views(window_assignment(grid, BLOCK), tokens.features)
        return ScaledTokens(features, assignment, target, averages=self.merge is None)

    @staticmethod
    def _shuffled(
        merge: nn.Sequential, tokens: VisualTokens, mean: Float[Tensor, "*batch views kept dim"]
    ) -> Float[Tensor, "*batch views kept dim"]:
        there: Bool[Tensor, "tokens 1"] = torch.ones(tokens.grid.tokens, 1, dtype=torch.bool, device=mean.device)
        full = torch.where(_blocks(there, tokens.grid), _blocks(tokens.features, tokens.grid), mean[..., None, :])
        wide = full.flatten(-2).to(next(merge.parameters()).dtype)
        return (mean.to(wide.dtype) + merge(wide)).to(mean.dtype)


def _blocks(rows: Tensor, grid: Grid) -> Tensor:
    """``(*batch, kept, 4, dim)`` of ``(*batch, tokens, dim)``: each block's tokens, row-major, with zeros beyond."""
    plane = F.pad(rows.unflatten(-2, (grid.rows, grid.cols)), (0, 0, 0, grid.cols % 2, 0, grid.rows % 2))
    return rearrange(plane, "... (r h) (c w) d -> ... (r c) (h w) d", h=BLOCK[0], w=BLOCK[1])

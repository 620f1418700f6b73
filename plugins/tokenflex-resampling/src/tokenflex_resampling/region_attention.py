"""Coarse tokens that look into their own region of the fine grid: TokenPacker's point-to-region attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenflex.contracts import Count, Grid, ScaledTokens, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import over_views
from tokenflex.ops.keeping import everything
from tokenflex.ops.pooling import pool_windows, pooled_grid, window_assignment
from tokenflex.scalers import WindowScaler

Projected = tuple[Float[Tensor, "*batch tokens dim"], Float[Tensor, "*batch tokens dim"]]
"""Keys and values of every token."""


class RegionAttentionScaler(WindowScaler):
    """The mean of each window, and what attention from the mean to the window's tokens adds (arXiv 2407.02392).

    ``y = mean + out(softmax(q(mean) k(region)^T / sqrt(d)) v(region))`` per head, on layer-normed means and regions,
    with one set of projections for all levels. ``out`` starts as zero, so a fresh scaler is average pooling. Levels
    whose windows hold one token each are untouched.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WindowScaler.Config):
        """Settings.

        Attributes:
            heads: attention heads; must divide the width of the language model.
        """

        heads: Count = 8

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config)
        if dim % config.heads:
            raise ConfigError(f"heads={config.heads!r} must divide the language model's width, {dim}; e.g. heads=1.")
        self.heads = config.heads
        self.norm = nn.LayerNorm(dim)
        # A bias of the keys would add the same to every score of a softmax: nothing.
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """One token per window of ``level``."""
        if pooled_grid(tokens.grid, self.windows[level]) == tokens.grid:
            return everything(tokens)
        return self._packed(tokens, self.windows[level], self._project(tokens))

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """All levels; keys and values are projected once."""
        if pooled_grid(tokens.grid, self.windows[0]) == tokens.grid:
            return (everything(tokens),) * len(self.windows)
        projected = self._project(tokens)
        whole = [pooled_grid(tokens.grid, window) == tokens.grid for window in self.windows]
        return tuple(
            everything(tokens) if untouched else self._packed(tokens, window, projected)
            for window, untouched in zip(self.windows, whole, strict=True)
        )

    def _project(self, tokens: VisualTokens) -> Projected:
        normed = self.norm(tokens.features.to(self.norm.weight.dtype))
        return self.key(normed), self.value(normed)

    def _packed(self, tokens: VisualTokens, window: tuple[int, int], projected: Projected) -> ScaledTokens:
        grid = tokens.grid
        mean = pool_windows(tokens.features, grid, window)
        exists = torch.ones(grid.tokens, 1, dtype=torch.bool, device=mean.device)
        wide = mean.to(self.norm.weight.dtype)
        keys, values = (regions(rows, grid, window) for rows in projected)
        found = self._look(self.query(self.norm(wide)), keys, values, regions(exists, grid, window)[..., 0])
        return ScaledTokens(
            features=(wide + self.out(found)).to(tokens.features.dtype),
            assignment=over_views(window_assignment(grid, window), tokens.features),
            grid=pooled_grid(grid, window),
        )

    def _look(
        self,
        queries: Float[Tensor, "*batch kept dim"],
        keys: Float[Tensor, "*batch kept inside dim"],
        values: Float[Tensor, "*batch kept inside dim"],
        exists: Bool[Tensor, "kept inside"],
    ) -> Float[Tensor, "*batch kept dim"]:
        """Attention of each query to the tokens of its region that exist."""
        queries, keys, values = (rows.unflatten(-1, (self.heads, -1)) for rows in (queries, keys, values))
        scores = torch.einsum("...khd,...kihd->...khi", queries, keys) * queries.shape[-1] ** -0.5
        weights = scores.float().masked_fill(~exists[:, None, :], float("-inf")).softmax(-1)
        return torch.einsum("...khi,...kihd->...khd", weights.to(values.dtype), values).flatten(-2)


def regions(rows: Tensor, grid: Grid, window: tuple[int, int]) -> Tensor:
    """``(*batch, kept, rows * cols of the window, dim)``: every window's rows of ``rows``, ``(*batch, tokens, dim)``.

    Partial windows at the lower and right edge are filled up with zeros.
    """
    high, wide = window
    plane = rows.unflatten(-2, (grid.rows, grid.cols))
    plane = F.pad(plane, (0, 0, 0, -grid.cols % wide, 0, -grid.rows % high))
    return rearrange(plane, "... (r h) (c w) d -> ... (r c) (h w) d", h=high, w=wide)

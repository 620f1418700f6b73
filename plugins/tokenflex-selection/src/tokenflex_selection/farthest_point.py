"""Farthest-point sampling in the space of features."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.levels import nested
from tokenflex_selection.spread import euclidean_distances, spread


class FarthestPointScaler(Scaler):
    """Greedy max-min selection by Euclidean distance, from the token of largest norm (Gonzalez 1985)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``ratios``, share of a view's tokens kept per level, coarse to fine."""

        ratios: Ratios = RATIOS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep tokens that lie far apart, in the order of the grid."""
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], _order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), _order)


def _order(tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
    start = torch.linalg.vector_norm(tokens.features.float(), dim=-1).argmax(-1)
    return spread(euclidean_distances(tokens.features, start), start, count)

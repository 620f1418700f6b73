"""Tokens that differ most from one another."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.levels import nested
from tokenflex_selection.spread import ROUNDING, first_best, own_cosine_distances, spread


class DivPruneScaler(Scaler):
    """Greedy max-min selection by cosine distance (arXiv 2503.02175).

    The first token is the one that is farthest from its nearest neighbour; then always the token that is farthest from
    its nearest kept token follows.
    """

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
    distances = own_cosine_distances(tokens.features)
    itself = torch.eye(distances.shape[-1], dtype=torch.bool, device=distances.device)
    isolation = distances.masked_fill(itself, float("inf")).amin(-1)
    return spread(distances, first_best(isolation, ROUNDING), count)

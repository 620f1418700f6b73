"""The tokens of largest norm, if wanted mixed with distance."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.levels import nested
from tokenflex_selection.settings import share
from tokenflex_selection.spread import euclidean_distances, spread


class NormScaler(Scaler):
    """Keeps the tokens of largest norm: importance without attention.

    With ``diversity`` = d above 0, after the token of largest norm always the one of largest
    (1 - d) * norm + d * (Euclidean distance to the nearest kept token) follows; both are in the unit of the features.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            diversity: weight of the distance to what is kept, from 0 (norm alone) to 1 (distance alone).
        """

        ratios: Ratios = RATIOS
        diversity: float = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        self.diversity = share("diversity", config.diversity)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the tokens of largest norm, in the order of the grid."""
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], self._order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), self._order)

    def _order(self, tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        norms = torch.linalg.vector_norm(tokens.features.float(), dim=-1)
        if self.diversity == 0:
            return norms.argsort(dim=-1, descending=True, stable=True)[..., :count]
        start = norms.argmax(-1)
        distances = self.diversity * euclidean_distances(tokens.features, start)
        return spread(distances, start, count, bonus=(1 - self.diversity) * norms)

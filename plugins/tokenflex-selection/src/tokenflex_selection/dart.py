"""A few pivots, and what resembles them least."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.levels import separate
from tokenflex_selection.settings import whole
from tokenflex_selection.spread import cosine_distances


class DARTScaler(Scaler):
    """Keeps pivots of large norm and the tokens with the lowest cosine to them (DART, arXiv 2502.11494).

    Works on the embeddings; every pivot is given an equal number of tokens, the first pivots one more where that
    doesn't come out even.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            pivots: tokens of largest norm that are kept and compared with; all kept ones, where those are fewer.
        """

        ratios: Ratios = RATIOS
        pivots: int = 8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        self.pivots = whole("pivots", config.pivots)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep pivots and their opposites, in the order of the grid."""
        return separate(tokens, self.granularities(tokens.grid)[level:][:1], self._prepare)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one set of cosines."""
        return separate(tokens, self.granularities(tokens.grid), self._prepare)

    def _prepare(self, tokens: VisualTokens) -> Callable[[int], Tensor]:
        norms = torch.linalg.vector_norm(tokens.features.float(), dim=-1)
        order = norms.argsort(dim=-1, descending=True, stable=True)[..., : self.pivots]
        rows = order[..., None].expand(*order.shape, tokens.features.shape[-1])
        distances = cosine_distances(tokens.features.gather(-2, rows), tokens.features)

        def pick(count: int) -> Int[Tensor, "*batch views count"]:
            pivots = min(count, order.shape[-1])
            quota, more = divmod(count - pivots, pivots)
            picked = order[..., :pivots]
            for number in range(pivots):
                unlike = distances[..., number, :].scatter(-1, picked, float("-inf"))
                found = unlike.argsort(dim=-1, descending=True, stable=True)[..., : quota + (number < more)]
                picked = torch.cat([picked, found], dim=-1)
            return picked

        return pick

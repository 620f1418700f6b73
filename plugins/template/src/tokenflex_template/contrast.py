"""Keep what stands out."""

from dataclasses import dataclass

import torch

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts, selected


class ContrastScaler(Scaler):
    """Keeps the tokens farthest from the mean of their view, in the order of the grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``ratios``, share of the tokens kept per level, coarse to fine."""

        ratios: Ratios = RATIOS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """How many tokens each level keeps; the grid itself at the finest."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the farthest tokens."""
        with torch.no_grad():
            features = tokens.features.float()
            distance = (features - features.mean(-2, keepdim=True)).norm(dim=-1)
            farthest = distance.argsort(dim=-1, descending=True, stable=True)
        return selected(tokens, farthest[..., : self.granularities(tokens.grid)[level]])

"""The tokens the vision tower looks at most."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.inputs import attention_of
from tokenflex_selection.levels import nested


class TopAttentionScaler(Scaler):
    """Keeps the tokens of largest attention (the attention-only line of work around arXiv 2412.01818)."""

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

    @property
    def needs(self) -> frozenset[Need]:
        """Attention."""
        return frozenset({"attention"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the tokens of largest attention, in the order of the grid.

        Raises:
            InputError: the tokens come without attention.
        """
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], _order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), _order)


def _order(tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
    return attention_of(tokens).argsort(dim=-1, descending=True, stable=True)[..., :count]

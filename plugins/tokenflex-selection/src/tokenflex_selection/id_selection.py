"""Attention, damped around what is already kept."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.inputs import attention_of
from tokenflex_selection.levels import nested
from tokenflex_selection.settings import share
from tokenflex_selection.spread import own_cosine_distances, picks_at, rows_of

LEAST = 1e-6
"""Least share of its score a token is left with when a kept one resembles it."""
NOTHING = -1e30
"""Log-score of a token without attention, above that of a token already kept."""


class IDSelectionScaler(Scaler):
    """Takes the best score, then damps the scores of similar tokens, and so on (ID-Selection, arXiv 2604.05601).

    A score starts as the token's attention and is multiplied by 1 - damping * max(cosine, 0) for every kept token.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            damping: what a token equal to a kept one loses of its score, from 0 (attention alone) to 1.
        """

        ratios: Ratios = RATIOS
        damping: float = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        self.damping = share("damping", config.damping)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    @property
    def needs(self) -> frozenset[Need]:
        """Attention."""
        return frozenset({"attention"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep attended tokens that differ, in the order of the grid.

        Raises:
            InputError: the tokens come without attention.
        """
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], self._order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), self._order)

    def _order(self, tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        # Products of hundreds of shares leave float32; their logarithms don't.
        score = attention_of(tokens).log().clamp(min=NOTHING)
        likeness = (1 - own_cosine_distances(tokens.features)).clamp(min=0)
        damped = (1 - self.damping * likeness).clamp(min=LEAST).log()
        rows, first = rows_of(damped)
        score = score.reshape(len(first), -1)
        places: list[Tensor] = []
        for _ in range(count):
            places.append(score.argmax(-1) + first)
            score = score + rows.index_select(0, places[-1])
            score.view(-1).index_fill_(0, places[-1], float("-inf"))
        return picks_at(places, first, damped.shape[:-2])

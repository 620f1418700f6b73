"""Tokens that cover the words and the image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, cosines, kept_layouts
from tokenflex_selection.inputs import words_of
from tokenflex_selection.levels import nested
from tokenflex_selection.settings import at_least_zero
from tokenflex_selection.spread import ROUNDING, first_best, own_cosines, picks_at, rows_of


class MMTokScaler(Scaler):
    """Greedy maximum coverage of words and tokens (MMTok, arXiv 2508.18264).

    Maximises sum_t max_{i kept} s(t, i) + coverage * sum_j max_{i kept} s(j, i) over the words t and all tokens j of
    the view, where s is the cosine, 0 where it is negative. Greedy choice reaches at least 1 - 1/e of the largest sum.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            coverage: weight of a covered token against a covered word.
        """

        ratios: Ratios = RATIOS
        coverage: float = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        self.coverage = at_least_zero("coverage", config.coverage)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    @property
    def needs(self) -> frozenset[Need]:
        """The instruction."""
        return frozenset({"instruction"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the tokens that cover most, in the order of the grid.

        Raises:
            InputError: the tokens come without an instruction.
        """
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], self._order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), self._order)

    def _order(self, tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        words, _ = words_of(tokens)
        image = self.coverage * own_cosines(tokens.features)
        worth = torch.cat([cosines(tokens.features, words), image], dim=-1)
        return _greedy_cover(torch.where(worth > 0, worth, 0.0), count)


def _greedy_cover(worth: Float[Tensor, "*batch tokens targets"], count: int) -> Int[Tensor, "*batch count"]:
    """Picks in the order in which they add most.

    Args:
        worth: how well a token covers each target, 0 or more.
    """
    leading = worth.shape[:-2]
    rows, first = rows_of(worth)
    worth = rows.view(len(first), -1, rows.shape[-1])
    covered = torch.zeros_like(worth[:, 0])
    taken = torch.zeros_like(worth[..., 0])
    places: list[Tensor] = []
    for _ in range(count):
        more = torch.threshold_(worth - covered[:, None], ROUNDING, 0.0).sum(-1)
        places.append(first_best(more + taken, ROUNDING) + first)
        taken.view(-1).index_fill_(0, places[-1], float("-inf"))
        covered = torch.maximum(covered, rows.index_select(0, places[-1]))
    return picks_at(places, first, leading)

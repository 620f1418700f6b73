"""Important tokens by attention, and of the rest those without a double."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex_selection.inputs import attention_of
from tokenflex_selection.levels import separate
from tokenflex_selection.settings import share, whole
from tokenflex_selection.spread import ROUNDING, own_cosines


class VisPrunerScaler(Scaler):
    """Part of the tokens by attention, the others by diversity (VisPruner, arXiv 2412.01818).

    The diverse ones are what remains when, round by round, the tokens that aren't important are split into every first
    and every second one, and the first ones that are most similar to a second one are dropped. As released, the first
    round splits them in the order of their attention, the next one takes the first ones that are left, the most similar
    first, and then the second ones. Decisions are made on the projected tokens.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            important: share of the kept tokens that are chosen by attention, rounded down.
            per_round: tokens dropped in a round.
        """

        ratios: Ratios = RATIOS
        important: float = 0.5
        per_round: int = 8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        self.important = share("important", config.important)
        self.per_round = whole("per_round", config.per_round)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    @property
    def needs(self) -> frozenset[Need]:
        """Attention."""
        return frozenset({"attention"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep important and diverse tokens, in the order of the grid.

        Raises:
            InputError: the tokens come without attention.
        """
        return separate(tokens, self.granularities(tokens.grid)[level:][:1], self._prepare)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one matrix of cosines."""
        return separate(tokens, self.granularities(tokens.grid), self._prepare)

    def _prepare(self, tokens: VisualTokens) -> Callable[[int], Tensor]:
        order = attention_of(tokens).argsort(dim=-1, descending=True, stable=True)
        # Cosines tell more apart than distances from 1 do; those of equal tokens are 1 exactly.
        likeness = own_cosines(tokens.features)
        likeness = torch.where(likeness < 1 - ROUNDING, likeness, 1.0)

        def pick(count: int) -> Int[Tensor, "*batch views count"]:
            important = int(count * self.important)
            diverse = _without_doubles(likeness, order[..., important:], count - important, self.per_round)
            return torch.cat([order[..., :important], diverse], dim=-1)

        return pick


def _without_doubles(
    likeness: Float[Tensor, "*batch tokens tokens"], rest: Int[Tensor, "*batch rest"], kept: int, per_round: int
) -> Int[Tensor, "*batch kept"]:
    """``kept`` of the tokens ``rest``, of which the first round's first ones are number 0, 2, 4, ..."""
    if kept == 0:
        return rest[..., :0]
    pairs, tokens = likeness.flatten(-2), likeness.shape[-1]
    while rest.shape[-1] > kept:
        first, second = rest[..., ::2], rest[..., 1::2]
        among = (tokens * first[..., None] + second[..., None, :]).flatten(-2)
        nearest = pairs.gather(-1, among).unflatten(-1, (first.shape[-1], -1)).amax(-1)
        left = first.shape[-1] - min(per_round, first.shape[-1], rest.shape[-1] - kept)
        unlike = nearest.argsort(dim=-1, stable=True)[..., :left].flip(-1)
        rest = torch.cat([first.gather(-1, unlike), second], dim=-1)
    return rest

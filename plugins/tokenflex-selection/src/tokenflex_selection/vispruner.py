"""Important tokens by attention, and of the rest those without a double."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Count, Share, VisualTokens
from tokenflex.ops.keeping import ranked
from tokenflex.ops.needed import attention_of
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import ROUNDING, own_cosines


class VisPrunerScaler(SelectionScaler):
    """Part of the tokens by attention, the others by diversity (VisPruner, arXiv 2412.01818).

    The diverse ones are what remains when, round by round, the tokens that aren't important are split into every first
    and every second one, and the first ones that are most similar to a second one are dropped. As released, the first
    round splits them in the order of their attention, the next one takes the first ones that are left, the most similar
    first, and then the second ones. Decisions are made on the projected tokens.
    """

    reads = ("attention",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            important: share of the kept tokens that are chosen by attention, rounded down.
            per_round: tokens dropped in a round.
        """

        important: Share = 0.5
        per_round: Count = 8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.important = config.important
        self.per_round = config.per_round

    def picks(self, image: VisualTokens, counts: Sequence[int]) -> list[Int[Tensor, "*batch views _"]]:
        """Important and diverse tokens."""
        attention = attention_of(image.attention, "VisPruner")
        order = ranked(attention, attention.shape[-1])
        # Cosines tell more apart than distances from 1 do; those of equal tokens are 1 exactly.
        likeness = own_cosines(image.features)
        likeness = torch.where(likeness < 1 - ROUNDING, likeness, 1.0)
        picked: list[Tensor] = []
        for count in counts:
            important = int(count * self.important)
            diverse = _without_doubles(likeness, order[..., important:], count - important, self.per_round)
            picked.append(torch.cat([order[..., :important], diverse], dim=-1))
        return picked


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

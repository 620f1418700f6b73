"""Attention, damped around what is already kept."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Share, VisualTokens
from tokenflex.ops.needed import attention_of
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import own_cosine_distances, picks_at, rows_of

LEAST = 1e-6
"""Least share of its score a token is left with when a kept one resembles it."""
NOTHING = -1e30
"""Log-score of a token without attention, above that of a token already kept."""


class IDSelectionScaler(SelectionScaler):
    """Takes the best score, then damps the scores of similar tokens, and so on (ID-Selection, arXiv 2604.05601).

    A score starts as the token's attention and is multiplied by 1 - damping * max(cosine, 0) for every kept token.
    """

    reads = ("attention",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            damping: what a token equal to a kept one loses of its score, from 0 (attention alone) to 1.
        """

        damping: Share = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.damping = config.damping

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Attended tokens that differ."""
        # Products of hundreds of shares leave float32; their logarithms don't.
        score = attention_of(image.attention, "ID-Selection").log().clamp(min=NOTHING)
        likeness = (1 - own_cosine_distances(image.features)).clamp(min=0)
        damped = (1 - self.damping * likeness).clamp(min=LEAST).log()
        rows, first = rows_of(damped)
        score = score.reshape(len(first), -1)
        places: list[Tensor] = []
        for _ in range(count):
            places.append(score.argmax(-1) + first)
            score = score + rows.index_select(0, places[-1])
            score.view(-1).index_fill_(0, places[-1], float("-inf"))
        return picks_at(places, first, damped.shape[:-2])

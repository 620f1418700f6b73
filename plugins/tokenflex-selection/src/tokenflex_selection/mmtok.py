"""Tokens that cover the prompt tokens and the image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import NotNegative, VisualTokens
from tokenflex.ops.keeping import cosines
from tokenflex.ops.needed import prompt_of
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import ROUNDING, first_best, own_cosines, picks_at, rows_of


class MMTokScaler(SelectionScaler):
    """Greedy maximum coverage of prompt tokens and visual tokens (MMTok, arXiv 2508.18264).

    Maximises sum_t max_{i kept} s(t, i) + coverage * sum_j max_{i kept} s(j, i) over the prompt's tokens t and all
    tokens j of the view, where s is the cosine, 0 where it is negative. Greedy choice reaches at least 1 - 1/e of the
    largest sum.
    """

    reads = ("instruction",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            coverage: weight of a covered token against a covered word.
        """

        coverage: NotNegative = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.coverage = config.coverage

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Tokens that cover much."""
        prompt, _ = prompt_of(image, "MMTok")
        among = self.coverage * own_cosines(image.features)
        worth = torch.cat([cosines(image.features, prompt), among], dim=-1)
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

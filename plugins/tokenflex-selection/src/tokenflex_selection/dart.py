"""A few pivots, and what resembles them least."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Count, VisualTokens
from tokenflex.ops.keeping import ranked
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import cosine_distances


class DARTScaler(SelectionScaler):
    """Keeps pivots of large norm and the tokens with the lowest cosine to them (DART, arXiv 2502.11494).

    Works on the embeddings; every pivot is given an equal number of tokens, the first pivots one more where that
    doesn't come out even.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            pivots: tokens of largest norm that are kept and compared with; all kept ones, where those are fewer.
        """

        pivots: Count = 8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pivots = config.pivots

    def picks(self, image: VisualTokens, counts: Sequence[int]) -> list[Int[Tensor, "*batch views _"]]:
        """Pivots and their opposites."""
        norms = torch.linalg.vector_norm(image.features.float(), dim=-1)
        order = ranked(norms, self.pivots)
        rows = order[..., None].expand(*order.shape, image.features.shape[-1])
        distances = cosine_distances(image.features.gather(-2, rows), image.features)
        return [_opposites(distances, order, count) for count in counts]


def _opposites(
    distances: Float[Tensor, "*batch pivots tokens"], order: Int[Tensor, "*batch pivots"], count: int
) -> Int[Tensor, "*batch count"]:
    """As many of the pivots ``order`` as there is room for, and the tokens most distant from each."""
    pivots = min(count, order.shape[-1])
    quota, more = divmod(count - pivots, pivots)
    picked = order[..., :pivots]
    for number in range(pivots):
        unlike = distances[..., number, :].scatter(-1, picked, float("-inf"))
        picked = torch.cat([picked, ranked(unlike, quota + (number < more))], dim=-1)
    return picked

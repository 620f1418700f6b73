"""Tokens that differ most from one another."""

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import VisualTokens
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import ROUNDING, first_best, own_cosine_distances, spread


class DivPruneScaler(SelectionScaler):
    """Greedy max-min selection by cosine distance (arXiv 2503.02175).

    The first token is the one that is farthest from its nearest neighbour; then always the token that is farthest from
    its nearest kept token follows.
    """

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Tokens that lie far apart."""
        distances = own_cosine_distances(image.features)
        itself = torch.eye(distances.shape[-1], dtype=torch.bool, device=distances.device)
        isolation = distances.masked_fill(itself, float("inf")).amin(-1)
        return spread(distances, first_best(isolation, ROUNDING), count)

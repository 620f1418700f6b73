"""Farthest-point sampling in the space of features."""

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import VisualTokens
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import euclidean_distances, spread


class FarthestPointScaler(SelectionScaler):
    """Greedy max-min selection by Euclidean distance, from the token of largest norm (Gonzalez 1985)."""

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Tokens that lie far apart."""
        start = torch.linalg.vector_norm(image.features.float(), dim=-1).argmax(-1)
        return spread(euclidean_distances(image.features, start), start, count)

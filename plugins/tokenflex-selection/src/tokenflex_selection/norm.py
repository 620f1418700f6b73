"""The tokens of largest norm, if wanted mixed with distance."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Share, VisualTokens
from tokenflex.ops.keeping import ranked
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import euclidean_distances, spread


class NormScaler(SelectionScaler):
    """Keeps the tokens of largest norm: importance without attention.

    With ``diversity`` = d above 0, after the token of largest norm always the one of largest
    (1 - d) * norm + d * (Euclidean distance to the nearest kept token) follows; both are in the unit of the features.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            diversity: weight of the distance to what is kept, from 0 (norm alone) to 1 (distance alone).
        """

        diversity: Share = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.diversity = config.diversity

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Tokens of large norm."""
        norms = torch.linalg.vector_norm(image.features.float(), dim=-1)
        if self.diversity == 0:
            return ranked(norms, count)
        start = norms.argmax(-1)
        distances = self.diversity * euclidean_distances(image.features, start)
        return spread(distances, start, count, bonus=(1 - self.diversity) * norms)

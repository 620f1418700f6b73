"""Keep what stands out."""

from torch import Tensor

from tokenflex.contracts import VisualTokens
from tokenflex.scalers import SelectionScaler


class ContrastScaler(SelectionScaler):
    """Keeps the tokens farthest from the mean of their view, in the order of the grid."""

    def scores(self, image: VisualTokens) -> Tensor:
        """How far a token is from the mean."""
        features = image.features.float()
        return (features - features.mean(-2, keepdim=True)).norm(dim=-1)

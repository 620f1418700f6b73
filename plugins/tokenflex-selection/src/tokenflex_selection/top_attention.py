"""The tokens the vision tower looks at most."""

from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import VisualTokens
from tokenflex.ops.needed import attention_of
from tokenflex.scalers import SelectionScaler


class TopAttentionScaler(SelectionScaler):
    """Keeps the tokens of largest attention (the attention-only line of work around arXiv 2412.01818)."""

    reads = ("attention",)

    def scores(self, image: VisualTokens) -> Float[Tensor, "*batch views tokens"]:
        """The attention."""
        return attention_of(image.attention, "TopAttention")

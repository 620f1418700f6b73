"""Cosines in which equals stay equal."""

from jaxtyping import Float
from torch import Tensor

from tokenflex.ops.keeping import cosines

STEPS = 2.0**16
"""Steps from 0 to 1."""


def likeness(
    left: Float[Tensor, "*batch left dim"], right: Float[Tensor, "*batch right dim"]
) -> Float[Tensor, "*batch left right"]:
    """Cosine of every row with every other, float32, rounded to 1/65536.

    Matrix products round alike rows differently from place to place and with the size of the batch. Rounded off, these
    differences don't decide between equals, and the lower index does.
    """
    return cosines(left, right).mul(STEPS).round().div(STEPS)

"""Cosines in which equals stay equal."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.ops.keeping import cosines

STEPS = 2.0**16
"""Steps from 0 to 1."""
ROUNDING = 2.0**-20
"""What float32 can't tell from nothing, for cosines: those of equal rows may differ by this much."""


def likeness(
    left: Float[Tensor, "*batch left dim"], right: Float[Tensor, "*batch right dim"]
) -> Float[Tensor, "*batch left right"]:
    """Cosine of every row with every other, float32, rounded to 1/65536.

    Matrix products round alike rows differently from place to place and with the size of the batch. Rounded off, these
    differences don't decide between equals, and the lower index does.
    """
    return cosines(left, right).mul(STEPS).round().div(STEPS)


def first_best(values: Float[Tensor, "*batch n"]) -> Int[Tensor, " *batch"]:
    """The first of the largest values; what is within `ROUNDING` of the largest counts as equal to it."""
    # Bytes, since booleans have no argmax.
    return (values >= values.amax(-1, keepdim=True) - ROUNDING).view(torch.uint8).argmax(-1)


def largest(values: Float[Tensor, "*batch n"], count: int) -> Bool[Tensor, "*batch n"]:
    """True at the ``count`` largest values; what is within `ROUNDING` of the last of them goes by index."""
    least = values.topk(count, dim=-1).values[..., -1:]
    surely = values > least + ROUNDING
    tied = (values >= least - ROUNDING) & ~surely
    return surely | (tied & (tied.cumsum(-1) <= count - surely.sum(-1, keepdim=True)))

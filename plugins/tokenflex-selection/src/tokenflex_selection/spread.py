"""Greedy choice of tokens that lie far apart, and the distances it works on."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.ops.keeping import cosines

ROUNDING = 1e-6
"""What float32 can't tell from nothing, for numbers around 1: equal tokens may differ by this much in a product."""


def cosine_distances(
    left: Float[Tensor, "*batch left dim"], right: Float[Tensor, "*batch right dim"]
) -> Float[Tensor, "*batch left right"]:
    """1 - cosine of every row with every other, exactly 0 for equal ones; a zero row is 1 away from all."""
    distances = 1 - cosines(left, right)
    return torch.where(distances > ROUNDING, distances, 0.0)


def euclidean_distances(
    features: Float[Tensor, "*batch tokens dim"], around: Int[Tensor, " *batch"]
) -> Float[Tensor, "*batch tokens tokens"]:
    """Euclidean distance of every token to every other, float32, exactly 0 for equal ones.

    Args:
        around: the token whose place is taken for the origin, since products of far-off vectors round away distances.
    """
    values = features.float()
    values = values - row(values, around)[..., None, :]
    with torch.autocast(values.device.type, enabled=False):
        squares = values.square().sum(-1)
        sums = squares[..., None] + squares[..., None, :]
        distances = sums - 2 * (values @ values.mT)
    return torch.where(distances > ROUNDING * sums, distances, 0.0).sqrt()


def spread(
    distances: Float[Tensor, "*batch tokens tokens"],
    start: Int[Tensor, " *batch"],
    count: int,
    bonus: Float[Tensor, "*batch tokens"] | None = None,
) -> Int[Tensor, "*batch count"]:
    """``start``, then always the token with the largest distance to the nearest one picked, plus ``bonus``.

    Everything stays on the device; ties go to the lower index.
    """
    picks, nearest = [start], row(distances, start)
    taken = picked_once(nearest, start)
    slack = ROUNDING * distances.amax((-2, -1))
    for _ in range(count - 1):
        value = nearest if bonus is None else nearest + bonus
        pick = first_best(value.masked_fill(taken, float("-inf")), slack)
        picks.append(pick)
        taken = taken | picked_once(nearest, pick)
        nearest = torch.minimum(nearest, row(distances, pick))
    return torch.stack(picks, dim=-1)


def first_best(
    values: Float[Tensor, "*batch tokens"], slack: float | Float[Tensor, " *batch"] = 0.0
) -> Int[Tensor, " *batch"]:
    """The first of the largest values; what is within ``slack`` of the largest counts as equal to it."""
    return (values >= (values.amax(-1) - slack)[..., None]).int().argmax(-1)


def picked_once(like: Float[Tensor, "*batch tokens"], pick: Int[Tensor, " *batch"]) -> Bool[Tensor, "*batch tokens"]:
    """True at ``pick`` only."""
    return torch.zeros_like(like, dtype=torch.bool).scatter(-1, pick[..., None], True)


def row(matrix: Float[Tensor, "*batch rows cols"], index: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch cols"]:
    """One row of each matrix."""
    index = index[..., None, None].expand(*index.shape, 1, matrix.shape[-1])
    return matrix.gather(-2, index).squeeze(-2)

"""Greedy choice of tokens that lie far apart, and the distances it works on."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.ops.keeping import cosines

ROUNDING = 1e-6
"""What float32 can't tell from nothing, for numbers around 1: equal tokens may differ by this much in a product."""


BAND = 64
"""Fewest rows worth a product of their own; smaller ones may round alike rows differently from larger ones."""


def own_cosines(features: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens tokens"]:
    """Cosine of every token with every other, float32; zero rows have cosine 0 with everything."""
    return own_products(torch.nn.functional.normalize(features.float(), dim=-1))


def own_products(vectors: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens tokens"]:
    """Dot product of every vector with every other, in float32.

    They are symmetric: in bands of rows, most pairs are multiplied once only, five eighths of the work.
    """
    tokens = vectors.shape[-2]
    products = vectors.new_empty(*vectors.shape[:-1], tokens)
    band = -(-tokens // 4) if tokens >= 4 * BAND else tokens
    with torch.autocast(vectors.device.type, enabled=False):
        for begin in range(0, tokens, band):
            end = min(begin + band, tokens)
            found = vectors[..., begin:end, :] @ vectors[..., begin:, :].mT
            products[..., begin:end, begin:] = found
            products[..., end:, begin:end] = found[..., end - begin :].mT
    return products


def own_cosine_distances(features: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens tokens"]:
    """`cosine_distances` of every token to every other."""
    return _distances(own_cosines(features))


def cosine_distances(
    left: Float[Tensor, "*batch left dim"], right: Float[Tensor, "*batch right dim"]
) -> Float[Tensor, "*batch left right"]:
    """1 - cosine of every row with every other, exactly 0 for equal ones; a zero row is 1 away from all."""
    return _distances(cosines(left, right))


def _distances(cosine: Float[Tensor, "*batch left right"]) -> Float[Tensor, "*batch left right"]:
    distances = 1 - cosine
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
    squares = values.square().sum(-1)
    sums = squares[..., None] + squares[..., None, :]
    distances = sums - 2 * own_products(values)
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
    rows, first = rows_of(distances)
    bonus = None if bonus is None else bonus.reshape(len(first), -1)
    slack = (ROUNDING * distances.amax((-2, -1))).reshape(-1, 1)
    places = [start.reshape(-1) + first]
    nearest = rows.index_select(0, places[0])
    for _ in range(count - 1):
        # What is picked stays at -inf, whatever it is compared with.
        nearest.view(-1).index_fill_(0, places[-1], float("-inf"))
        places.append(first_best(nearest if bonus is None else nearest + bonus, slack) + first)
        nearest = torch.minimum(nearest, rows.index_select(0, places[-1]))
    return picks_at(places, first, start.shape)


def first_best(
    values: Float[Tensor, "*batch tokens"], slack: float | Float[Tensor, "*#batch 1"] = 0.0
) -> Int[Tensor, " *batch"]:
    """The first of the largest values; what is within ``slack`` of the largest counts as equal to it."""
    # Bytes, since booleans have no argmax.
    return (values >= values.amax(-1, keepdim=True) - slack).view(torch.uint8).argmax(-1)


def rows_of(
    matrices: Float[Tensor, "*batch tokens width"],
) -> tuple[Float[Tensor, "rows width"], Int[Tensor, " matrices"]]:
    """(the rows of all matrices below one another, the place of each matrix's first row).

    Token t of matrix m is then at place ``first[m] + t``, which one index reaches, without a matrix of indices.
    """
    rows = matrices.reshape(-1, matrices.shape[-1])
    return rows, torch.arange(0, len(rows), matrices.shape[-2], device=rows.device)


def picks_at(
    places: Sequence[Int[Tensor, " matrices"]], first: Int[Tensor, " matrices"], leading: Sequence[int]
) -> Int[Tensor, "*batch count"]:
    """The picks that were made one after another, from their places in `rows_of`.

    Args:
        leading: the shape of a batch.
    """
    return (torch.stack(list(places), dim=-1) - first[:, None]).reshape(*leading, len(places))


def row(matrix: Float[Tensor, "*batch rows cols"], index: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch cols"]:
    """One row of each matrix."""
    rows, first = rows_of(matrix)
    return rows.index_select(0, index.reshape(-1) + first).reshape(*index.shape, matrix.shape[-1])

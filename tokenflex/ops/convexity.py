"""The smallest concave curve above a table of values."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def concave(
    values: Float[Tensor, "*batch levels"], costs: Int[Tensor, "*batch levels"]
) -> Float[Tensor, "*batch levels"]:
    """At every level the least value of a curve that is concave in the cost and nowhere below ``values``.

    That is the largest of the value itself and of all straight lines between a cheaper and a dearer level.

    Args:
        values: of every level.
        costs: of every level, not falling.
    """
    found = values
    for cheap in range(values.shape[-1]):
        for dear in range(cheap + 1, values.shape[-1]):
            start, end = costs[..., cheap, None], costs[..., dear, None]
            at = ((costs - start).to(values) / (end - start).clamp(min=1)).clamp(0, 1)
            ends = values[..., cheap, None], values[..., dear, None]
            line = ((1 - at) * ends[0] + at * ends[1]).clamp(max=torch.maximum(*ends))
            between = (costs >= start) & (costs <= end)
            found = torch.where(between, torch.maximum(found, line), found)
    return found

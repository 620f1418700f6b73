"""Sharing out a number of tokens by weight, where nobody can get more than there is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-20


def apportion(
    weights: Float[Tensor, "*batch parts"], sizes: Int[Tensor, " parts"], count: int
) -> Int[Tensor, "*batch parts"]:
    """``count`` tokens, in proportion to ``weights``, at most ``sizes``; they add up exactly.

    Parts whose share exceeds their size are filled, and what they can't take goes to the others in proportion; then
    the largest remainders are rounded up (the lower index first). Shapes are fixed; the host waits for nothing.

    Args:
        weights: 0 or more.
        sizes: tokens of each part; together at least ``count``.
    """
    weights, room = weights.float().clamp(min=TINY), sizes.float().expand(weights.shape)
    # With shares = level * weights, parts fill up in the order of size / weight as the level rises.
    full_at, order = (room / weights).sort(dim=-1, stable=True)
    in_full = room.gather(-1, order)
    unfilled = weights.gather(-1, order).flip(-1).cumsum(-1).flip(-1)
    levels = (count - (in_full.cumsum(-1) - in_full)) / unfilled
    filled = (levels > full_at).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    shares = torch.minimum(levels.gather(-1, filled) * weights, room)
    whole = shares.floor()
    remainders = torch.where(whole < room, shares - whole, -1.0)
    rank = remainders.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (whole + (rank < count - whole.sum(-1, keepdim=True))).long()

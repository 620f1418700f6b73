"""From choices to levels: the finest keeps everything, the others what was picked."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenflex.contracts import ScaledTokens, VisualTokens
from tokenflex.ops.keeping import everything, selected


def nested(
    tokens: VisualTokens, counts: Sequence[int], order: Callable[[VisualTokens, int], Tensor]
) -> tuple[ScaledTokens, ...]:
    """Levels that are prefixes of one order, which is found once.

    Args:
        counts: tokens kept per view at each level.
        order: gives the first so many picks, ``(*batch, views, count)``, best first.
    """
    partial = [count for count in counts if count < tokens.grid.tokens]
    if not partial:
        return tuple(everything(tokens) for _ in counts)
    with torch.no_grad():
        picked = order(tokens, max(partial))
    return tuple(
        selected(tokens, picked[..., :count]) if count < tokens.grid.tokens else everything(tokens) for count in counts
    )


def separate(
    tokens: VisualTokens, counts: Sequence[int], prepare: Callable[[VisualTokens], Callable[[int], Tensor]]
) -> tuple[ScaledTokens, ...]:
    """Levels that are chosen one by one, from what is prepared once.

    Args:
        counts: tokens kept per view at each level.
        prepare: gives a function from a count to the picks, ``(*batch, views, count)``.
    """
    if min(counts) == tokens.grid.tokens:
        return tuple(everything(tokens) for _ in counts)
    with torch.no_grad():
        pick = prepare(tokens)
        picked = [pick(count) if count < tokens.grid.tokens else None for count in counts]
    return tuple(everything(tokens) if chosen is None else selected(tokens, chosen) for chosen in picked)

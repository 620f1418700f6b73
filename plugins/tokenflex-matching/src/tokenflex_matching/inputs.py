"""What the methods are set to, and the vectors whose similarity counts."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Need, Rule, VisualTokens, one_of
from tokenflex.errors import InputError

Metric = Annotated[str, one_of("features", "keys")]
"""Vectors that tokens are compared by."""
AtLeastOne = Annotated[int, Rule(lambda value: value >= 1, "is no count; use an integer of 1 or more.")]
"""A number of things."""


def metric_needs(metric: str, *more: Need) -> frozenset[Need]:
    """What a part with this ``metric`` has to declare, and what it needs ``more``."""
    return frozenset(("keys", *more)) if metric == "keys" else frozenset(more)


def metric_vectors(tokens: VisualTokens, metric: str) -> Float[Tensor, "*batch views tokens width"]:
    """The tokens' features or attention keys in float32, without gradients.

    Raises:
        InputError: keys are wanted and the image has none.
    """
    if metric == "features":
        return tokens.features.detach().float()
    if tokens.keys is None:
        raise InputError(
            "metric='keys' compares attention keys, and this image has none. Use metric='features', "
            "or a host whose vision tower can be read."
        )
    return tokens.keys.detach().float()


def rows_at(values: Float[Tensor, "*batch tokens width"], places: Tensor) -> Tensor:
    """``(*batch, kept, width)``, the rows of ``values`` at ``places`` ``(*batch, kept)``."""
    return values.gather(-2, places[..., None].expand(*places.shape, values.shape[-1]))


def numbering(places: Tensor, tokens: int) -> Tensor:
    """``(*batch, tokens)``, the position of every token in ``places`` ``(*batch, kept)``; -1 where it isn't there."""
    numbers = torch.arange(places.shape[-1], device=places.device).expand(places.shape)
    return places.new_full((*places.shape[:-1], tokens), -1).scatter(-1, places, numbers)

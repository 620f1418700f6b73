"""Assignments: which kept token a source token went into, and how they act on features."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_only(tokens: int, kept: Int[Tensor, " kept"]) -> Int[Tensor, " tokens"]:
    """The assignment that keeps the source tokens ``kept`` (in that order) and drops all others."""
    assignment = torch.full((tokens,), -1, dtype=torch.long)
    assignment[kept] = torch.arange(len(kept))
    return assignment


def over_views(
    assignment: Int[Tensor, " tokens"], features: Float[Tensor, "*batch views tokens dim"]
) -> Int[Tensor, "*batch views tokens"]:
    """One view's assignment for all views of ``features``, on its device; a view, not a copy."""
    return assignment.to(features.device).expand(features.shape[:-1])


def mean_of_sources(
    values: Float[Tensor, "*batch views tokens dim"],
    assignment: Int[Tensor, "*batch views tokens"],
    kept: int,
    frames: Int[Tensor, " views"] | None = None,
) -> Float[Tensor, "*batch kept_views kept dim"]:
    """For each kept token the mean of ``values`` over the source tokens that went into it, in the type of ``values``.

    Computed in float32. A kept token without sources gets the mean over its view.

    Args:
        frames: kept view of every source view; None: its own.
    """
    source = values.float()
    views = source.shape[-3]
    into = torch.arange(views, device=source.device) if frames is None else frames.to(source.device)
    kept_views = int(into[-1]) + 1
    inside = (assignment >= 0)[..., None].flatten(-3, -2)
    place = (into[:, None] * kept + assignment.clamp(min=0))[..., None].flatten(-3, -2)
    shape = (*source.shape[:-3], kept_views * kept)
    flat = source.flatten(-3, -2)
    total = source.new_zeros(*shape, source.shape[-1]).scatter_add(-2, place.expand_as(flat), flat * inside)
    count = source.new_zeros(*shape, 1).scatter_add(-2, place, inside.float())
    everything = source.new_zeros(*source.shape[:-3], kept_views, source.shape[-1])
    everything = everything.index_add(-2, into, source.mean(-2)) / into.bincount()[:, None]
    mean = torch.where(count > 0, total / count.clamp(min=1), everything.repeat_interleave(kept, dim=-2))
    return mean.to(values.dtype).unflatten(-2, (kept_views, kept))

"""Assignments: which kept token a source token went into, and how they act on features."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ScaledTokens


def keep_only(tokens: int, kept: Int[Tensor, " kept"]) -> Int[Tensor, " tokens"]:
    """The assignment that keeps the source tokens ``kept`` (in that order) and drops all others."""
    assignment = torch.full((tokens,), -1, dtype=torch.long)
    assignment[kept] = torch.arange(len(kept))
    return assignment


def over_views(
    assignment: Int[Tensor, " tokens"], features: Float[Tensor, "*batch views tokens dim"]
) -> Int[Tensor, "*batch views tokens"]:
    """One view's assignment for all views of ``features``, on its device; a view, not a copy."""
    return on_device_of(assignment, features).expand(features.shape[:-1])


def on_device_of(indices: Int[Tensor, " n"], features: Float[Tensor, "..."]) -> Int[Tensor, " n"]:
    """``indices``, made by the host, on the device of ``features``; the host doesn't wait for the device."""
    return indices.to(features.device, non_blocking=features.is_cuda)


def mean_of_sources(
    values: Float[Tensor, "*batch views tokens dim"],
    assignment: Int[Tensor, "*batch views tokens"],
    kept: int,
    frames: Int[Tensor, " views"] | None = None,
    complete: bool = False,
) -> Float[Tensor, "*batch kept_views kept dim"]:
    """For each kept token the mean of ``values`` over the source tokens that went into it, in the type of ``values``.

    Computed in float32. A kept token without sources gets the mean over its view.

    Args:
        frames: kept view of every source view; None: its own.
        complete: whether every kept token is known to have a source.
    """
    source = values.float()
    if complete and frames is None:
        return average(source, assignment, kept).to(values.dtype)
    views = source.shape[-3]
    into = torch.arange(views, device=source.device) if frames is None else frames.to(source.device)
    kept_views = views if frames is None else int(into[-1]) + 1
    place = torch.where(assignment >= 0, into[:, None] * kept + assignment, -1).flatten(-2)
    mean = average(source.flatten(-3, -2), place, kept_views * kept)
    found = average(torch.ones_like(place, dtype=source.dtype)[..., None], place, kept_views * kept)
    everything = average(source.mean(-2), into.expand(source.shape[:-2]), kept_views)
    mean = torch.where(found > 0, mean, everything.repeat_interleave(kept, dim=-2))
    return mean.to(values.dtype).unflatten(-2, (kept_views, kept))


def average(
    values: Float[Tensor, "*batch tokens dim"], assignment: Int[Tensor, "*batch tokens"], kept: int
) -> Float[Tensor, "*batch kept dim"]:
    """For each kept token the mean of ``values`` over the source tokens that went into it; zero if there are none.

    Half precision is added in float32, in the order of the tokens; nothing is read by the host.
    """
    leading = assignment.shape[:-1]
    bags = math.prod(leading) * kept
    offsets = torch.arange(0, bags, kept, device=values.device).view(*leading, 1)
    # Dropped tokens go into a bag of their own behind all others.
    into = (assignment + offsets).masked_fill(assignment < 0, bags).flatten()
    into, order = into.sort(stable=True)
    starts = torch.searchsorted(into, torch.arange(bags + 1, device=values.device))
    means = F.embedding_bag(order, values.flatten(0, -2), starts, mode="mean")
    return means[:-1].view(*leading, kept, values.shape[-1])


def at_every_level(
    pyramid: Sequence[ScaledTokens], affine: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*batch views rows width"]:
    """``affine`` of the tokens of every level, coarse to fine.

    Averaging commutes with affine maps: where levels are averages and follow from the finest one here, that alone is
    mapped, and its values are averaged.
    """
    finest = pyramid[-1]
    whole = finest.features.shape[-2] == finest.assignment.shape[-1]
    follow = whole or all(level.nested for level in pyramid[:-1])
    if not (follow and all(level.averages for level in pyramid)):
        return torch.cat([affine(level.features) for level in pyramid], dim=-2)
    values = affine(finest.features)
    if whole:
        coarser = [average(values, level.assignment, level.features.shape[-2]) for level in pyramid[:-1]]
    else:
        coarser = _of_groups(values, finest, pyramid[:-1])
    return torch.cat([*coarser, values], dim=-2)


def _of_groups(
    values: Float[Tensor, "*batch views kept width"], finer: ScaledTokens, coarser: Sequence[ScaledTokens]
) -> list[Float[Tensor, "*batch views fewer width"]]:
    """The means of coarser levels from those of ``finer``, whose groups they unite, weighted by their sources."""
    shape, there, at = values.shape[:-1], finer.assignment >= 0, finer.assignment.clamp(min=0)
    sizes = values.new_zeros(shape).scatter_add(-1, at, there.to(values.dtype))[..., None]
    sums, found = values * sizes, list[Tensor]()
    for level in coarser:
        sources = torch.where(there, level.assignment, -1)
        into = sources.new_full(shape, -1).scatter_reduce(-1, at, sources, "amax")
        fewer = level.features.shape[-2]
        found.append(average(sums, into, fewer) / average(sizes, into, fewer))
    return found

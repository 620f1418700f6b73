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

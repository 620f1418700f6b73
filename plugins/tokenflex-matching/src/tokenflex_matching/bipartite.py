"""Rounds of bipartite soft matching (ToMe, arXiv 2210.09461, section 3).

An assignment says for every source token which of the remaining tokens it is part of; remaining tokens are numbered in
the order of the grid, by the first token of each. Even numbers are set A, odd ones set B.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.ops.assignment import average
from tokenflex.ops.keeping import in_grid_order
from tokenflex_matching.likeness import likeness


def best_matches(
    metric: Float[Tensor, "*batch views tokens width"],
    assignment: Int[Tensor, "*batch views tokens"],
    count: int,
    present: Int[Tensor, "*batch views"] | None = None,
) -> tuple[Float[Tensor, "*batch views even"], Int[Tensor, "*batch views even"]]:
    """For every token of A the likeness of its best match in B, and that match's place in B; ties: lower place first.

    Tokens are compared by the plain mean of their sources.

    Args:
        metric: vectors of the source tokens, float32.
        count: numbers in use, 2 or more.
        present: numbers from here on stand for no token and match with nothing; None: all stand for one.
    """
    vectors = average(metric, assignment, count)
    similarity = likeness(vectors[..., 0::2, :], vectors[..., 1::2, :])
    if present is not None:
        odd = torch.arange(1, count, 2, device=metric.device)
        similarity = similarity.masked_fill((odd >= present[..., None])[..., None, :], float("-inf"))
    best, partner = similarity.max(-1)
    return best, partner


def joined(
    assignment: Int[Tensor, "*batch views tokens"],
    count: int,
    partner: Int[Tensor, "*batch views even"],
    merging: Bool[Tensor, "*batch views even"],
) -> Int[Tensor, "*batch views tokens"]:
    """The assignment after the tokens of A marked in ``merging`` went into their partners."""
    numbers = torch.arange(count, device=assignment.device)
    into = numbers.repeat(*assignment.shape[:-1], 1)
    into[..., 0::2] = torch.where(merging, 2 * partner + 1, numbers[0::2])
    return in_grid_order(into.gather(-1, assignment), count)


def merge_round(
    metric: Float[Tensor, "*batch views tokens width"],
    assignment: Int[Tensor, "*batch views tokens"],
    count: int,
    merges: int,
) -> Int[Tensor, "*batch views tokens"]:
    """One round: the ``merges`` pairs of highest similarity become one token each; ties: lower index first."""
    best, partner = best_matches(metric, assignment, count)
    order = best.argsort(dim=-1, descending=True, stable=True)[..., :merges]
    merging = torch.zeros_like(best, dtype=torch.bool).scatter(-1, order, True)
    return joined(assignment, count, partner, merging)


@torch.no_grad()
def match_down(
    metric: Float[Tensor, "*batch views tokens width"], counts: Sequence[int]
) -> dict[int, Int[Tensor, "*batch views tokens"]]:
    """The assignments that leave ``counts`` tokens each.

    Whatever the counts, tokens are halved (n // 2 merges) as long as enough remain, and a last, smaller round reaches
    the count itself. So all counts share the halvings, and each is what it would be alone.
    """
    remaining = metric.shape[-2]
    assignment = torch.arange(remaining, device=metric.device).expand(metric.shape[:-1])
    found: dict[int, Int[Tensor, "*batch views tokens"]] = {}
    for count in sorted(set(counts), reverse=True):
        while remaining > count and remaining - remaining // 2 >= count:
            assignment = merge_round(metric, assignment, remaining, remaining // 2)
            remaining -= remaining // 2
        extra = remaining - count
        found[count] = merge_round(metric, assignment, remaining, extra) if extra else assignment
    return found

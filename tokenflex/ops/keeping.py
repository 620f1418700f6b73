"""Keeping some tokens and dropping or merging the rest: counts, and the scaled tokens that follow from a choice.

What most published compression methods have in common: a share of the tokens is kept, and only the choice differs.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from tokenflex.contracts import Grid, ScaledTokens, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import average, keep_only, on_device_of, over_views

Ratios = tuple[float, ...]
"""Share of a view's tokens kept per level, coarse to fine; the last is 1."""

RATIOS: Ratios = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""The shares of the published pyramid: 36, 72, 144, 288 and 576 of 576 tokens."""


def check_ratios(ratios: Sequence[float]) -> Ratios:
    """The ratios, if they lead from coarse to fine and end with everything.

    Raises:
        ConfigError: with the offending ratio and the rule it breaks.
    """
    if not ratios or ratios[-1] != 1:
        raise ConfigError(f"ratios={tuple(ratios)} must end with 1.0: the finest level keeps every token.")
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio {ratio!r} is no share of the tokens; use numbers above 0, at most 1.")
    for coarse, fine in itertools.pairwise(ratios):
        if coarse > fine:
            raise ConfigError(f"ratios={tuple(ratios)} must go from coarse to fine: {fine} comes after {coarse}.")
    return tuple(float(ratio) for ratio in ratios)


def kept_count(ratio: float, tokens: int) -> int:
    """Tokens that a share stands for, rounded half up, at least one."""
    return max(int(ratio * tokens + 0.5), 1)


def kept_layouts(grid: Grid, ratios: Sequence[float]) -> tuple[Grid | int, ...]:
    """Per level the number of tokens kept; the grid itself where that is all of them."""
    counts = (kept_count(ratio, grid.tokens) for ratio in ratios)
    return tuple(grid if count == grid.tokens else count for count in counts)


def everything(tokens: VisualTokens) -> ScaledTokens:
    """All tokens as they are: the finest level."""
    places = torch.arange(tokens.grid.tokens, device=tokens.features.device)
    return ScaledTokens(tokens.features, places.expand(tokens.features.shape[:-1]), tokens.grid, averages=True)


def ranked(scores: Real[Tensor, "*batch tokens"], count: int) -> Int[Tensor, "*batch count"]:
    """The places of the ``count`` largest scores, largest first; of equal ones the first in the order of the grid."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]


def selected(tokens: VisualTokens, picked: Int[Tensor, "*batch views kept"]) -> ScaledTokens:
    """The tokens ``picked`` (no index twice), in the order of the grid; all others are dropped.

    Gradients reach the kept features.
    """
    features, count = tokens.features, picked.shape[-1]
    if count == tokens.grid.tokens:
        return everything(tokens)
    places = picked.sort(-1).values
    kept = features.gather(-2, places[..., None].expand(*places.shape, features.shape[-1]))
    numbers = torch.arange(count, device=picked.device).expand(places.shape)
    assignment = places.new_full(features.shape[:-1], -1).scatter(-1, places, numbers)
    return ScaledTokens(kept, assignment, None, averages=True)


def selected_alike(tokens: VisualTokens, picked: Int[Tensor, " kept"], grid: Grid | None) -> ScaledTokens:
    """The same tokens of every view, in the order of ``picked``; all others are dropped.

    Args:
        picked: places in the grid, on the CPU, no place twice.
        grid: of the kept tokens; None where they form none.
    """
    return ScaledTokens(
        features=tokens.features[..., on_device_of(picked, tokens.features), :],
        assignment=over_views(keep_only(tokens.grid.tokens, picked), tokens.features),
        grid=grid,
        averages=True,
    )


def merged(tokens: VisualTokens, assignment: Int[Tensor, "*batch views tokens"], kept: int) -> ScaledTokens:
    """The mean of the tokens with the same number in ``assignment`` (0 .. ``kept`` - 1, each at least once)."""
    if kept == tokens.grid.tokens:
        return everything(tokens)
    return ScaledTokens(average(tokens.features, assignment, kept), assignment, None, averages=True)


def in_grid_order(assignment: Int[Tensor, "*batch views tokens"], kept: int) -> Int[Tensor, "*batch views tokens"]:
    """The same groups, numbered without gaps by the first token of each in the order of the grid; -1 stays.

    Args:
        kept: numbers in ``assignment`` are below it; not all of them need occur.
    """
    tokens = assignment.shape[-1]
    places = torch.arange(tokens, device=assignment.device).expand(assignment.shape)
    first = assignment.new_full((*assignment.shape[:-1], kept + 1), tokens)
    into = torch.where(assignment >= 0, assignment, kept)
    first = first.scatter_reduce(-1, into, places, "amin")[..., :kept]
    rank = first.argsort(-1).argsort(-1)
    return torch.where(assignment >= 0, rank.gather(-1, assignment.clamp(min=0)), assignment)


def cosines(
    left: Float[Tensor, "*batch left dim"], right: Float[Tensor, "*batch right dim"]
) -> Float[Tensor, "*batch left right"]:
    """Cosine of every row with every other, float32; zero rows have cosine 0 with everything."""
    with torch.autocast(left.device.type, enabled=False):
        left = torch.nn.functional.normalize(left.float(), dim=-1)
        right = torch.nn.functional.normalize(right.float(), dim=-1)
        return left @ right.mT

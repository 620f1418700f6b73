"""The most attended tokens, and a few that stand for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Need, ScaledTokens, Share, VisualTokens, one_of
from tokenflex.ops.assignment import average
from tokenflex.ops.keeping import cosines, merged, ranked
from tokenflex.ops.needed import attention_of
from tokenflex.scalers import RatioScaler
from tokenflex_matching.inputs import Metric, metric_needs, metric_vectors, numbering, rows_at
from tokenflex_matching.likeness import first_best


class VisionZipScaler(RatioScaler):
    """Dominant tokens by attention, contextual tokens for the rest (VisionZip, arXiv 2412.04467).

    Among the tokens that aren't dominant, targets are taken at uniform stride in the order of the grid, a whole number
    of tokens as released; every other token goes to its most similar target, the first of those that are equally
    similar but for rounding. Kept tokens are in the order of the grid, a contextual token at the place of its target.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(RatioScaler.Config):
        """Settings.

        Attributes:
            contextual: share of the kept tokens that are contextual, rounded half up; 10 of 64 as published. Where it
                comes to none, tokens that aren't dominant are dropped.
            merge: ``mean`` of a target and its members together, or ``add``: the target plus the mean of its members,
                as in the released implementation.
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
        """

        contextual: Share = 10 / 64
        merge: Annotated[str, one_of("mean", "add")] = "mean"
        metric: Metric = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.contextual, self.merge, self.metric = config.contextual, config.merge, config.metric

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.metric, "attention")

    def fewer(self, image: VisualTokens, counts: Sequence[int]) -> list[ScaledTokens]:
        """Keep the dominant tokens, merge the others."""
        attention = attention_of(image.attention, "VisionZip")
        metric = metric_vectors(image, self.metric)
        return [self._level(image, attention, metric, count) for count in counts]

    def _level(self, image: VisualTokens, attention: Tensor, metric: Tensor, kept: int) -> ScaledTokens:
        targets = int(self.contextual * kept + 0.5)
        places, assignment = zipped(attention, metric, kept - targets, targets)
        if self.merge == "mean":
            return merged(image, assignment, kept)
        members = torch.where(numbering(places, image.grid.tokens) >= 0, -1, assignment)
        features = rows_at(image.features, places) + average(image.features, members, kept)
        return ScaledTokens(features, assignment, None)


@torch.no_grad()
def zipped(
    attention: Float[Tensor, "*batch views tokens"],
    metric: Float[Tensor, "*batch views tokens width"],
    dominant: int,
    targets: int,
) -> tuple[Int[Tensor, "*batch views kept"], Int[Tensor, "*batch views tokens"]]:
    """(places of dominant and target tokens in the order of the grid, assignment).

    Args:
        dominant: tokens kept by attention.
        targets: tokens kept at uniform stride among the others: number j * (others // targets) for j = 0, 1, ...
    """
    count = attention.shape[-1]
    order = ranked(attention, count)
    rest = order[..., dominant:].sort(-1).values
    strides = torch.arange(targets, device=rest.device) * (rest.shape[-1] // max(targets, 1))
    target = rest[..., strides]
    places = torch.cat([order[..., :dominant], target], dim=-1).sort(-1).values
    numbers = numbering(places, count)
    if targets == 0:
        return places, numbers
    nearest = first_best(cosines(metric, rows_at(metric, target)))
    into = numbers.gather(-1, target.gather(-1, nearest))
    return places, torch.where(numbers >= 0, numbers, into)

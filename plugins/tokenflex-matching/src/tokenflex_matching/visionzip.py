"""The most attended tokens, and a few that stand for the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import average
from tokenflex.ops.keeping import RATIOS, check_ratios, cosines, everything, kept_layouts, merged
from tokenflex_matching.inputs import (
    METRICS,
    attention_of,
    check_choice,
    check_share,
    metric_needs,
    metric_vectors,
    numbering,
    rows_at,
    strongest,
)
from tokenflex_matching.likeness import first_best

MERGES = ("mean", "add")


class VisionZipScaler(Scaler):
    """Dominant tokens by attention, contextual tokens for the rest (VisionZip, arXiv 2412.04467).

    Among the tokens that aren't dominant, targets are taken at uniform stride in the order of the grid, a whole number
    of tokens as released; every other token goes to its most similar target, the first of those that are equally
    similar but for rounding. Kept tokens are in the order of the grid, a contextual token at the place of its target.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of the tokens kept per level, coarse to fine; the last is 1.
            contextual: share of the kept tokens that are contextual, rounded half up; 10 of 64 as published. Where it
                comes to none, tokens that aren't dominant are dropped.
            merge: ``mean`` of a target and its members together, or ``add``: the target plus the mean of its members,
                as in the released implementation.
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
        """

        ratios: tuple[float, ...] = RATIOS
        contextual: float = 10 / 64
        merge: str = "mean"
        metric: str = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_share("contextual", config.contextual)
        check_choice("merge", config.merge, MERGES)
        check_choice("metric", config.metric, METRICS)
        self.ratios, self.contextual = check_ratios(config.ratios), config.contextual
        self.merge, self.metric = config.merge, config.metric

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.metric, "attention")

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Counts; the grid where all tokens are kept."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the dominant tokens, merge the others.

        Raises:
            InputError: there is no attention, or keys are to be compared and there are none.
        """
        kept = self.granularities(tokens.grid)[level]
        if kept == tokens.grid.tokens:
            return everything(tokens)
        targets = int(self.contextual * kept + 0.5)
        attention = attention_of(tokens.attention, "VisionZip")
        places, assignment = zipped(attention, metric_vectors(tokens, self.metric), kept - targets, targets)
        if self.merge == "mean":
            return merged(tokens, assignment, kept)
        members = torch.where(numbering(places, tokens.grid.tokens) >= 0, -1, assignment)
        features = rows_at(tokens.features, places) + average(tokens.features, members, kept)
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
    order = strongest(attention, count)
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

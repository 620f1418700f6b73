"""The most attended tokens, each with something of the tokens like it, and one token for the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import beside
from tokenflex.ops.keeping import RATIOS, check_ratios, everything, kept_layouts
from tokenflex_matching.inputs import (
    METRICS,
    attention_of,
    check_choice,
    check_count,
    check_share,
    metric_needs,
    metric_vectors,
    numbering,
    rows_at,
    strongest,
)
from tokenflex_matching.likeness import likeness
from tokenflex_matching.spatial_sample import spread


class PruMergeScaler(Scaler):
    """Tokens kept by attention take in the tokens most similar to them (LLaVA-PruMerge, arXiv 2403.15388).

    With the attention a of a view divided by its sum, a kept token x becomes x + sum of a_j x_j over its nearest other
    tokens, so it stays within twice the size of tokens. The appended token is the mean of all tokens that aren't kept,
    weighted by a: their bare sum would shrink with the attention that is left for them. Kept tokens are in the order
    of the grid; the appended one comes last. In ``assignment`` the tokens that aren't kept belong to the appended one,
    and count as dropped where none is appended.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of the tokens kept per level, coarse to fine; the last is 1.
            spatial: share of the kept tokens that are spread evenly over the grid whatever their attention.
            neighbours: how many tokens each kept one takes in; all others where a view has fewer.
            append: one of the kept tokens is the appended one; False: all are tokens kept by attention.
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
        """

        ratios: tuple[float, ...] = RATIOS
        spatial: float = 0.0
        neighbours: int = 32
        append: bool = True
        metric: str = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _check(config.spatial, config.neighbours, config.metric)
        self.ratios, self.metric, self.append = check_ratios(config.ratios), config.metric, config.append
        self.spatial, self.neighbours = config.spatial, config.neighbours

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.metric, "attention")

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Counts; the grid where all tokens are kept."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep, take in, append.

        Raises:
            InputError: there is no attention, or keys are to be compared and there are none.
        """
        kept = self.granularities(tokens.grid)[level]
        return _pruned(tokens, kept, self.spatial, self.neighbours, self.append, self.metric)


class PruMergePlusScaler(Scaler):
    """`PruMergeScaler` where half of the kept tokens are spread evenly over the grid (PruMerge+, arXiv 2403.15388)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: those of `PruMergeScaler`, with another default of ``spatial``."""

        ratios: tuple[float, ...] = RATIOS
        spatial: float = 0.5
        neighbours: int = 32
        append: bool = True
        metric: str = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _check(config.spatial, config.neighbours, config.metric)
        self.ratios, self.metric, self.append = check_ratios(config.ratios), config.metric, config.append
        self.spatial, self.neighbours = config.spatial, config.neighbours

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.metric, "attention")

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Counts; the grid where all tokens are kept."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep, take in, append; raises what `PruMergeScaler.scale` raises."""
        kept = self.granularities(tokens.grid)[level]
        return _pruned(tokens, kept, self.spatial, self.neighbours, self.append, self.metric)


def _check(spatial: float, neighbours: int, metric: str) -> None:
    check_share("spatial", spatial)
    check_count("neighbours", neighbours)
    check_choice("metric", metric, METRICS)


def _pruned(
    tokens: VisualTokens, kept: int, spatial: float, neighbours: int, append: bool, metric: str
) -> ScaledTokens:
    count = tokens.grid.tokens
    if kept == count:
        return everything(tokens)
    attention = attention_of(tokens.attention, "PruMerge")
    own = kept - 1 if append else kept
    sample = torch.tensor(spread(tokens.grid, min(int(spatial * kept + 0.5), own)), dtype=torch.long)
    places = strongest(attention.index_fill(-1, beside(sample, attention), float("inf")), own).sort(-1).values
    weights = taken_in(attention, metric_vectors(tokens, metric), places, neighbours)
    with torch.autocast(attention.device.type, enabled=False):
        source = tokens.features.float()
        features = rows_at(source, places) + weights @ source
        if append:
            others = of_others(attention, places)[..., None, :] @ source
            features = torch.cat([features, others], dim=-2)
    numbers = numbering(places, count)
    assignment = torch.where(numbers < 0, kept - 1, numbers) if append else numbers
    return ScaledTokens(features.to(tokens.features.dtype), assignment, None)


@torch.no_grad()
def taken_in(
    attention: Float[Tensor, "*batch views tokens"],
    metric: Float[Tensor, "*batch views tokens width"],
    places: Int[Tensor, "*batch views own"],
    neighbours: int,
) -> Float[Tensor, "*batch views own tokens"]:
    """How much of every token goes into each kept one: the attention's shares of its nearest others, else 0.

    Ties: lower index first.
    """
    alike = likeness(rows_at(metric, places), metric).scatter(-1, places[..., None], float("-inf"))
    nearest = strongest(alike, min(neighbours, metric.shape[-2] - 1))
    share = shares(attention, torch.ones_like(attention))[..., None, :].expand(alike.shape)
    return torch.zeros_like(alike).scatter(-1, nearest, share.gather(-1, nearest))


@torch.no_grad()
def of_others(
    attention: Float[Tensor, "*batch views tokens"], places: Int[Tensor, "*batch views own"]
) -> Float[Tensor, "*batch views tokens"]:
    """The attention's shares among the tokens that aren't at ``places``; 0 at ``places``."""
    return shares(attention, torch.ones_like(attention).scatter(-1, places, 0.0))


def shares(
    attention: Float[Tensor, "*batch views tokens"], among: Float[Tensor, "*batch views tokens"]
) -> Float[Tensor, "*batch views tokens"]:
    """Attention divided by its sum over the tokens that are 1 in ``among``; equal shares where that sum is 0."""
    there = attention * among
    total = there.sum(-1, keepdim=True)
    return torch.where(total > 0, there / total, among / among.sum(-1, keepdim=True))

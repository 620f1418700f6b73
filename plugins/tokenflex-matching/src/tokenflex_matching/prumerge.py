"""The most attended tokens, each with something of the tokens like it, and one token for the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import on_device_of
from tokenflex.ops.keeping import RATIOS, check_ratios, cosines, everything, kept_layouts
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
from tokenflex_matching.likeness import largest
from tokenflex_matching.spatial_sample import spread

WEIGHTS = ("shares", "attention")


class PruMergeScaler(Scaler):
    """Tokens kept by attention take in the tokens most similar to them (LLaVA-PruMerge, arXiv 2403.15388).

    With the attention a of a view divided by its sum, a kept token x becomes x + sum of a_j x_j over its nearest other
    tokens, so it stays within twice the size of tokens. The appended token is the mean of all tokens that aren't kept,
    weighted by a: their bare sum would shrink with the attention that is left for them. ``weights="attention"`` is the
    released form: attention isn't divided, and the appended token is the bare sum. Kept tokens are in the order of the
    grid; the appended one comes last. In ``assignment`` the tokens that aren't kept belong to the appended one,
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
            weights: ``shares`` of the attention, or ``attention`` as the tower gives it, as released.
        """

        ratios: tuple[float, ...] = RATIOS
        spatial: float = 0.0
        neighbours: int = 32
        append: bool = True
        metric: str = "features"
        weights: str = "shares"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _check(config.spatial, config.neighbours, config.metric, config.weights)
        self.ratios, self.metric, self.settings = check_ratios(config.ratios), config.metric, config

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
        return _pruned(tokens, self.granularities(tokens.grid)[level], self.settings)


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
        weights: str = "shares"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _check(config.spatial, config.neighbours, config.metric, config.weights)
        self.ratios, self.metric, self.settings = check_ratios(config.ratios), config.metric, config

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.metric, "attention")

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Counts; the grid where all tokens are kept."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep, take in, append; raises what `PruMergeScaler.scale` raises."""
        return _pruned(tokens, self.granularities(tokens.grid)[level], self.settings)


def _check(spatial: float, neighbours: int, metric: str, weights: str) -> None:
    check_share("spatial", spatial)
    check_count("neighbours", neighbours)
    check_choice("metric", metric, METRICS)
    check_choice("weights", weights, WEIGHTS)


def _pruned(tokens: VisualTokens, kept: int, config: PruMergeScaler.Config | PruMergePlusScaler.Config) -> ScaledTokens:
    count = tokens.grid.tokens
    if kept == count:
        return everything(tokens)
    attention = attention_of(tokens.attention, "PruMerge")
    own = kept - 1 if config.append else kept
    sample = torch.tensor(spread(tokens.grid, min(int(config.spatial * kept + 0.5), own)), dtype=torch.long)
    places = strongest(attention.index_fill(-1, on_device_of(sample, attention), float("inf")), own).sort(-1).values
    near = taken_in(metric_vectors(tokens, config.metric), places, config.neighbours)
    left = torch.ones_like(attention).scatter(-1, places, 0.0)
    if config.weights == "shares":
        of_all, of_left = shares(attention, torch.ones_like(attention)), shares(attention, left)
    else:
        of_all, of_left = attention, attention * left
    with torch.autocast(attention.device.type, enabled=False):
        source = tokens.features.float()
        features = rows_at(source, places) + (near * of_all[..., None, :]) @ source
        if config.append:
            features = torch.cat([features, of_left[..., None, :] @ source], dim=-2)
    numbers = numbering(places, count)
    assignment = torch.where(numbers < 0, kept - 1, numbers) if config.append else numbers
    return ScaledTokens(features.to(tokens.features.dtype), assignment, None)


@torch.no_grad()
def taken_in(
    metric: Float[Tensor, "*batch views tokens width"], places: Int[Tensor, "*batch views own"], neighbours: int
) -> Bool[Tensor, "*batch views own tokens"]:
    """Which tokens go into each kept one: its ``neighbours`` most similar others; ties: lower index first."""
    alike = cosines(rows_at(metric, places), metric).scatter(-1, places[..., None], float("-inf"))
    return largest(alike, min(neighbours, metric.shape[-2] - 1))


def shares(
    attention: Float[Tensor, "*batch views tokens"], among: Float[Tensor, "*batch views tokens"]
) -> Float[Tensor, "*batch views tokens"]:
    """Attention divided by its sum over the tokens that are 1 in ``among``; equal shares where that sum is 0."""
    there = attention * among
    total = there.sum(-1, keepdim=True)
    return torch.where(total > 0, there / total, among / among.sum(-1, keepdim=True))

"""The most attended tokens, each with something of the tokens like it, and one token for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import Need, ScaledTokens, Share, VisualTokens, one_of
from tokenflex.ops.assignment import on_device_of
from tokenflex.ops.keeping import cosines, ranked
from tokenflex.ops.needed import attention_of
from tokenflex.scalers import RatioScaler
from tokenflex_matching.inputs import AtLeastOne, Metric, metric_needs, metric_vectors, numbering, rows_at
from tokenflex_matching.likeness import largest
from tokenflex_matching.spatial_sample import spread


class _PruMerge(RatioScaler):
    """What `PruMergeScaler` and `PruMergePlusScaler` have in common: all but the default of ``spatial``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RatioScaler.Config):
        """Settings.

        Attributes:
            spatial: share of the kept tokens that are spread evenly over the grid whatever their attention.
            neighbours: how many tokens each kept one takes in; all others where a view has fewer.
            append: one of the kept tokens is the appended one; False: all are tokens kept by attention.
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
            weights: ``shares`` of the attention, or ``attention`` as the tower gives it, as released.
        """

        spatial: Share = 0.0
        neighbours: AtLeastOne = 32
        append: bool = True
        metric: Metric = "features"
        weights: Annotated[str, one_of("shares", "attention")] = "shares"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings = config

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, and ``keys`` where they are compared."""
        return metric_needs(self.settings.metric, "attention")

    def fewer(self, image: VisualTokens, counts: Sequence[int]) -> list[ScaledTokens]:
        """Keep, take in, append."""
        attention = attention_of(image.attention, "PruMerge")
        metric = metric_vectors(image, self.settings.metric)
        return [self._level(image, attention, metric, count) for count in counts]

    def _level(self, image: VisualTokens, attention: Tensor, metric: Tensor, kept: int) -> ScaledTokens:
        config, count = self.settings, image.grid.tokens
        own = kept - 1 if config.append else kept
        sample = torch.tensor(spread(image.grid, min(int(config.spatial * kept + 0.5), own)), dtype=torch.long)
        first = attention.index_fill(-1, on_device_of(sample, attention), float("inf"))
        places = ranked(first, own).sort(-1).values
        near = taken_in(metric, places, config.neighbours)
        left = torch.ones_like(attention).scatter(-1, places, 0.0)
        if config.weights == "shares":
            of_all, of_left = shares(attention, torch.ones_like(attention)), shares(attention, left)
        else:
            of_all, of_left = attention, attention * left
        source = image.features.float()
        features = rows_at(source, places) + (near * of_all[..., None, :]) @ source
        if config.append:
            features = torch.cat([features, of_left[..., None, :] @ source], dim=-2)
        numbers = numbering(places, count)
        assignment = torch.where(numbers < 0, kept - 1, numbers) if config.append else numbers
        return ScaledTokens(features.to(image.features.dtype), assignment, None)


class PruMergeScaler(_PruMerge):
    """Tokens kept by attention take in the tokens most similar to them (LLaVA-PruMerge, arXiv 2403.15388).

    With the attention a of a view divided by its sum, a kept token x becomes x + sum of a_j x_j over its nearest other
    tokens, so it stays within twice the size of tokens. The appended token is the mean of all tokens that aren't kept,
    weighted by a: their bare sum would shrink with the attention that is left for them. ``weights="attention"`` is the
    released form: attention isn't divided, and the appended token is the bare sum. Kept tokens are in the order of the
    grid; the appended one comes last. In ``assignment`` the tokens that aren't kept belong to the appended one,
    and count as dropped where none is appended.
    """


class PruMergePlusScaler(_PruMerge):
    """`PruMergeScaler` where half of the kept tokens are spread evenly over the grid (PruMerge+, arXiv 2403.15388)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_PruMerge.Config):
        """Attributes: those of `PruMergeScaler`, with another default of ``spatial``."""

        spatial: Share = 0.5


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

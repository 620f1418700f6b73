"""Clusters around the peaks of density."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import VisualTokens
from tokenflex.scalers import MergingScaler
from tokenflex_matching.inputs import AtLeastOne, numbering


class DensityPeaksScaler(MergingScaler):
    """Density-peak clustering by nearest neighbours (Chat-UniVi, arXiv 2311.08046).

    A token is dense when its nearest neighbours are near, and a centre when it is dense and far from all denser ones.
    Every other token goes to its nearest centre; clusters are averaged. Kept tokens are in the order of the grid, each
    at the place of its centre. Distances are root mean squares over the channels, so that densities of wide
    features don't all vanish.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MergingScaler.Config):
        """Settings.

        Attributes:
            neighbours: nearest tokens that density is measured with; all others where a view has fewer.
        """

        neighbours: AtLeastOne = 5

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.neighbours = config.neighbours

    def assignments(self, image: VisualTokens, counts: Sequence[int]) -> list[Int[Tensor, "*batch views tokens"]]:
        """The clusters of each level; distances and peaks are computed once."""
        apart = distances(image.features.float())
        order = peaks(apart, self.neighbours)
        return [clusters(apart, order[..., :kept]) for kept in counts]


def distances(features: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens tokens"]:
    """Root mean square over the channels of the differences of every two tokens, float32."""
    # Not by way of a matrix product: it gives equal tokens small distances, different from place to place.
    plain = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return plain / features.shape[-1] ** 0.5


def peaks(apart: Float[Tensor, "*batch tokens tokens"], neighbours: int) -> Int[Tensor, "*batch tokens"]:
    """All tokens, the most likely centre first: by density times distance to the nearest denser token.

    Of two tokens of equal density the one of lower index counts as denser; the densest of all has its greatest
    distance. Equal products: lower index first. Products are compared as sums of logarithms: densities
    exp(-mean squared distance) may be too small for float32.

    Args:
        apart: distances of two tokens or more.
        neighbours: tokens that density is measured with.
    """
    count = apart.shape[-1]
    itself = torch.eye(count, dtype=torch.bool, device=apart.device)
    others = apart.masked_fill(itself, float("inf"))
    near = others.topk(min(neighbours, count - 1), dim=-1, largest=False).values
    log_density = -near.square().mean(-1)
    rank = log_density.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    denser = rank[..., None, :] < rank[..., :, None]
    nearest = apart.masked_fill(~denser, float("inf")).amin(-1)
    separation = torch.where(rank == 0, apart.amax(-1), nearest)
    return (log_density + separation.log()).argsort(dim=-1, descending=True, stable=True)


def clusters(
    apart: Float[Tensor, "*batch tokens tokens"], centres: Int[Tensor, "*batch kept"]
) -> Int[Tensor, "*batch tokens"]:
    """For every token the number of its nearest centre in the order of the grid; ties: lower index first."""
    places = centres.sort(-1).values
    to_centres = apart.gather(-1, places[..., None, :].expand(*apart.shape[:-1], places.shape[-1]))
    own = numbering(places, apart.shape[-1])
    return torch.where(own >= 0, own, to_centres.argmin(-1))

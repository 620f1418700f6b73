"""The published voter of AVG-LLaVA: one learned weight per voter position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Voter
from tokenflex.errors import InputError


class PositionWeightedVoter(Voter):
    """Weighted sum over the voters of a view, mean over views, LayerNorm over the levels.

    AVG-LLaVA (arXiv 2410.02745, section 3.2), in float32. The weights are learned for the layout of voters on
    the host's canonical grid. Where a level has another grid, its weights are resampled to it and rescaled by
    the ratio of areas, so that the level as a whole keeps its say; on the canonical grid nothing changes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    def __init__(self, config: Config, *, segments: Sequence[Grid], num_levels: int) -> None:
        super().__init__(config)
        self.segments = tuple(segments)
        self.weight = nn.Parameter(torch.randn(sum(grid.tokens for grid in self.segments)))
        self.norm = nn.LayerNorm(num_levels)

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Count; see `Voter.forward` for shapes.

        Raises:
            InputError: the ballots have another number of segments than the voter was made for.
        """
        logits = ballots.logits.float().masked_fill(~ballots.mask[..., None], 0.0)
        with torch.autocast(logits.device.type, enabled=False):
            tally = torch.einsum("...vl,v->...l", logits, self._weights(ballots.segments)).mean(-2)
            return F.layer_norm(
                tally,
                self.norm.normalized_shape,
                self.norm.weight.float(),
                self.norm.bias.float(),
                self.norm.eps,
            )

    def _weights(self, segments: Sequence[Grid]) -> Float[Tensor, " voters"]:
        if tuple(segments) == self.segments:
            return self.weight.float()
        if len(segments) != len(self.segments):
            raise InputError(
                f"the ballots have {len(segments)} segments of voters, this voter was made for "
                f"{len(self.segments)}; build it for this router and scaler, or use the voter 'mean'."
            )
        pieces = self.weight.float().split([grid.tokens for grid in self.segments])
        return torch.cat([_resampled(*piece) for piece in zip(pieces, self.segments, segments, strict=True)])


def _resampled(weight: Float[Tensor, " voters"], learned: Grid, actual: Grid) -> Float[Tensor, " actual"]:
    if actual == learned:
        return weight
    plane = weight.view(1, 1, learned.rows, learned.cols)
    size = (actual.rows, actual.cols)
    resized = F.interpolate(plane, size, mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten() * (learned.tokens / actual.tokens)

"""Learned weights that follow from what the ballots say, for any number of voters."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.contracts import Ballots, ComponentConfig, Voter


class AttentionVoter(Voter):
    """Attention pooling: a ballot's weight is the softmax, over all voters of all views, of its product with a query.

    The query, one number per level, is learned; it starts at zero, where the scores are those of the voter ``mean``.
    Unlike learned positions it fits any grid, number of views and layout of voters.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    def __init__(self, config: Config, *, num_levels: int) -> None:
        super().__init__(config)
        self.query = nn.Parameter(torch.zeros(num_levels))

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """The weighted mean, float32; zero where every ballot is masked."""
        mask = ballots.mask.flatten(-2)
        logits = ballots.logits.float().flatten(-3, -2).masked_fill(~mask[..., None], 0.0)
        with torch.autocast(logits.device.type, enabled=False):
            heard = (logits @ self.query.float()).masked_fill(~mask, torch.finfo(torch.float32).min)
            weights = heard.softmax(-1) * mask
            return torch.einsum("...v,...vl->...l", weights, logits)

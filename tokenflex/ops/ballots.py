"""Ballots: simple ones made, and votes counted."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tokenflex.contracts import Ballots, Grid, ScaledTokens


def one_per_view(logits: Float[Tensor, "*batch views levels"]) -> Ballots:
    """Ballots with a single voter per view."""
    mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    return Ballots(logits.float()[..., None, :], mask[..., None], (Grid(1, 1),))


def shortfall(needed: Float[Tensor, "*batch views"], pyramid: Sequence[ScaledTokens]) -> Ballots:
    """Votes against levels that keep fewer tokens than a view needs: minus the share that is missing, else 0.

    Averaged over the views (the voter ``mean``) and left to the policy ``argmax``, which gives ties to the coarser
    level, they choose the coarsest level that keeps enough for every view; 0.5 says that half as many again are needed.
    """
    kept = [float(level.features.shape[-2]) for level in pyramid]
    counts = torch.tensor(kept, dtype=torch.float32).to(needed.device, non_blocking=needed.is_cuda)
    return one_per_view(-(needed.float()[..., None] / counts - 1).clamp(min=0))


def favourites(ballots: Ballots, counted: Bool[Tensor, "*batch views voters"]) -> Float[Tensor, "*batch levels"]:
    """Per level the share of the ``counted`` voters that like it best (ties: the coarser one); zero without voters."""
    logits = ballots.logits.detach().float().masked_fill(~counted[..., None], 0.0)
    best = (logits >= logits.amax(-1, keepdim=True)).int().argmax(-1)
    votes = F.one_hot(best, logits.shape[-1]) * counted[..., None]
    return votes.sum((-3, -2)) / counted.sum((-2, -1))[..., None].clamp(min=1)

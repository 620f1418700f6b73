"""Ballots of routers that need no training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
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

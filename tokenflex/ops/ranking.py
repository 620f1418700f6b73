"""The RGLF losses (AVG-LLaVA, section 3.3): rank granularities by the LMM's own losses."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def forgive(losses: Float[Tensor, "samples levels"], tolerance: float) -> Float[Tensor, "samples levels"]:
    """Losses in which every level within ``tolerance`` nats per token of the best counts as equally good."""
    best = losses.amin(-1, keepdim=True)
    return torch.where(losses - best <= tolerance, best, losses)


def best_first(losses: Float[Tensor, "samples levels"]) -> Int[Tensor, "samples levels"]:
    """Levels by ascending loss; equal losses keep the coarser level first."""
    return losses.argsort(dim=-1, stable=True)


def usable(losses: Float[Tensor, "samples levels"]) -> Bool[Tensor, " samples"]:
    """Whether a sample has a finite loss at every level; those without answer tokens have none."""
    return losses.isfinite().all(-1)


def ranking_loss(
    scores: Float[Tensor, "samples levels"],
    losses: Float[Tensor, "samples levels"],
    margin: float = 1.0,
    *,
    samples: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """Pairwise hinge: a better level must lead by ``margin`` x rank distance x difference in loss.

    sum over j = 1..G-1 of the mean over samples and i = 1..G-j of
    max(0, s[i+j] - s[i] + margin * j * (l[i+j] - l[i])), with s the log-softmax of the scores and both s
    and l sorted by ascending loss. At zero the gradient of the hinge is 1/2, as published.

    Args:
        scores: the router's logits.
        losses: mean negative log-likelihood of the answer at each level, in nats per token.
        samples: how many the mean is over, where these are only some of them; None: these.
    """
    order = best_first(losses)
    count = len(losses) if samples is None else samples
    s = F.log_softmax(scores, dim=-1).gather(-1, order)
    ranked = losses.gather(-1, order)
    total = scores.new_zeros(())
    for j in range(1, scores.shape[-1]):
        gap = s[:, j:] - s[:, :-j] + margin * j * (ranked[:, j:] - ranked[:, :-j])
        total = total + torch.maximum(gap, torch.zeros_like(gap)).sum() / (count * gap.shape[-1])
    return total


def feedback_cross_entropy(
    scores: Float[Tensor, "samples levels"],
    losses: Float[Tensor, "samples levels"],
    tolerance: float = 0.0,
    *,
    guard: bool = True,
    samples: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy towards the level of least loss, a mean over the samples.

    Args:
        guard: samples whose losses are all equal give no label and count as 0; otherwise, as published, the coarsest
            level is theirs.
        samples: how many the mean is over, where these are only some of them; None: these.
    """
    informative = losses.amax(-1) > losses.amin(-1) if guard else torch.ones_like(losses[:, 0], dtype=torch.bool)
    label = best_first(forgive(losses, tolerance))[:, 0]
    per_sample = F.cross_entropy(scores, label, reduction="none")
    return (per_sample * informative).sum() / (len(losses) if samples is None else samples)


def rglf_loss(
    scores: Float[Tensor, "samples levels"],
    losses: Float[Tensor, "samples levels"],
    *,
    margin: float = 1.0,
    rank_weight: float = 1.0,
    ce_weight: float = 0.1,
    tolerance: float = 0.0,
    guard: bool = True,
    samples: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """``rank_weight`` x `ranking_loss` + ``ce_weight`` x `feedback_cross_entropy`.

    With a ``tolerance`` (0 as published), levels that lose no more than that many nats per answer token
    against the best tie with it, and ties go to the coarser level.

    Samples with a loss that isn't finite (no answer tokens) are left out; with none left the result is a
    zero that still belongs to the graph. Without ``guard`` they stay, as published, and make the result NaN.

    Args:
        samples: how many `usable` samples the means are over, where these are only some of them; None: these.
    """
    if guard:
        valid = usable(losses)
        if not bool(valid.any()):
            return scores.sum() * 0.0
        scores, losses = scores[valid], losses[valid]
    scores, losses = scores.float(), losses.float()
    rank = ranking_loss(scores, forgive(losses, tolerance), margin, samples=samples)
    labelled = feedback_cross_entropy(scores, losses, tolerance, guard=guard, samples=samples)
    return rank_weight * rank + ce_weight * labelled

"""Tokens that are relevant to the prompt and differ from one another: a conditional determinantal point process."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import Rule, VisualTokens
from tokenflex.ops.keeping import cosines
from tokenflex.ops.needed import prompt_count, prompt_of
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.spread import ROUNDING, own_cosines, picks_at, rows_of

EXHAUSTED = 1e-5
"""Variance that kept tokens leave of a token's own, which is 1; up to it a token counts as a combination of them."""
Theta = Annotated[
    float | None,
    Rule(
        lambda theta: theta is None or 0 <= theta < 1,
        "must be at least 0 and below 1; None weights by relevance itself.",
    ),
]


class CDPrunerScaler(SelectionScaler):
    """Greedy MAP of a DPP whose kernel is similarity weighted by relevance (CDPruner, arXiv 2506.10967).

    Relevance r is a token's mean cosine with the prompt's, scaled to 0..1 per view; the kernel is r_i * c_ij * r_j, or,
    with ``theta``, r is replaced by exp(alpha * r), alpha = theta / (2 * (1 - theta)). Without a prompt r is 1. The
    released code takes the negative cosine in CLIP's space, scaled over the whole batch; with the same r, the same
    tokens are kept.
    """

    reads = ("instruction",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            theta: weight of relevance against diversity, at least 0 (the prompt is ignored), below 1; None: the kernel
                is weighted by relevance itself.
        """

        theta: Theta = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.alpha = None if config.theta is None else config.theta / (2 * (1 - config.theta))

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """Relevant and diverse tokens."""
        relevance = _relevance(image)
        log_weights = relevance.log() if self.alpha is None else self.alpha * relevance
        return _greedy_map(own_cosines(image.features), 2 * log_weights, count)


def _relevance(image: VisualTokens) -> Float[Tensor, "*batch views tokens"]:
    """Mean cosine with the prompt tokens, scaled to 0..1 per view; 1 where all are equally relevant."""
    prompt, mask = prompt_of(image, "CDPruner")
    mean = cosines(prompt, image.features).sum(-2) / prompt_count(mask)[..., None]
    low, high = mean.amin(-1, keepdim=True), mean.amax(-1, keepdim=True)
    return torch.where(high - low > ROUNDING, (mean - low) / (high - low), 1.0)


def _greedy_map(
    similarity: Float[Tensor, "*batch tokens tokens"], log_weights: Float[Tensor, "*batch tokens"], count: int
) -> Int[Tensor, "*batch count"]:
    """Picks in the order in which they enlarge the determinant most.

    Weights multiply a token's conditional variance whatever is kept, so they stay out of the decomposition. Tokens that
    add nothing, combinations of kept ones and those of weight 0, come last, by index.
    """
    leading, tokens = log_weights.shape[:-1], log_weights.shape[-1]
    rows, first = rows_of(similarity)
    weights = log_weights.reshape(-1, tokens).clone()
    variance = _above_nothing(similarity.diagonal(dim1=-2, dim2=-1).reshape(-1, tokens))
    factors = rows.new_zeros(count, *variance.shape)
    at = factors.view(count, -1)
    best: list[Tensor] = []
    places: list[Tensor] = []
    for step in range(count):
        score = variance.log() + weights
        best.append(score.amax(-1, keepdim=True))
        place = (score >= best[-1] - ROUNDING).view(torch.uint8).argmax(-1) + first
        places.append(place)
        weights.view(-1).index_fill_(0, place, float("-inf"))
        before = at[:step].index_select(1, place).mT[:, None]
        given = rows.index_select(0, place)[:, None]
        explained = torch.baddbmm(given, before, factors[:step].transpose(0, 1), alpha=-1)[:, 0]
        scale = variance.view(-1).index_select(0, place).rsqrt()
        factor = torch.mul(explained, scale[:, None], out=factors[step])
        variance = _above_nothing(torch.addcmul(variance, factor, factor, value=-1))
    picks = picks_at(places, first, first.shape)
    return _rest_by_index(picks, torch.cat(best, dim=-1) > float("-inf"), tokens).reshape(*leading, count)


def _above_nothing(variance: Float[Tensor, "views tokens"]) -> Float[Tensor, "views tokens"]:
    """The conditional variances, 0 where a token is a combination of kept ones, but for rounding."""
    return torch.threshold(variance, EXHAUSTED, 0.0)


def _rest_by_index(
    picks: Int[Tensor, "views count"], chosen: Bool[Tensor, "views count"], tokens: int
) -> Int[Tensor, "views count"]:
    """``picks`` as far as they were ``chosen``, which is a prefix; then the other tokens, by index."""
    taken = picks.new_zeros(len(picks), tokens).scatter_add(-1, picks, chosen.to(picks.dtype))
    others = taken.argsort(dim=-1, stable=True)
    number = torch.arange(picks.shape[-1], device=picks.device) - chosen.sum(-1, keepdim=True)
    return torch.where(chosen, picks, others.gather(-1, number.clamp(min=0)))

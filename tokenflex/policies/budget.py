"""The dial: as good as the scores say, within so many tokens."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Policy
from tokenflex.errors import ConfigError, InputError

PER = ("image", "tile", "request")


@dataclass(frozen=True, kw_only=True)
class Budget(ComponentConfig):
    """The settings of a `BudgetPolicy`: what may be spent on visual tokens. Without any, the best score wins.

    Attributes:
        tokens: visual tokens allowed, separators included; None: any number.
        ratio: instead of ``tokens``, the share of the finest level's tokens allowed, above 0, at most 1; None: any.
        weight: what the finest level's tokens cost in units of the score, 0 or more.
        per: what ``tokens`` and ``ratio`` are counted for: each ``image`` (a routing unit: a tile where the host's
            adapter routes tiles); each ``tile`` (a view's kept tokens, without separators); or the whole
            ``request``.
        floor, ceiling: coarsest and finest level that may be picked; negative counts from the finest, -1.

    Raises:
        ConfigError: a setting isn't of its type or range, or both ``tokens`` and ``ratio`` are given.
    """

    tokens: int | None = None
    ratio: float | None = None
    weight: float = 0.0
    per: str = "image"
    floor: int = 0
    ceiling: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens is not None and self.ratio is not None:
            raise ConfigError(
                f"tokens={self.tokens} and ratio={self.ratio} are two limits on the same tokens; give one of them."
            )
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} allows nothing; use an integer of 1 or more, or None.")
        if self.ratio is not None and not self.ratio > 0:
            raise ConfigError(f"ratio={self.ratio} must be above 0; 0.3 allows 30 % of the finest level's tokens.")
        if self.ratio is not None and self.ratio > 1:
            raise ConfigError(
                f"ratio={self.ratio} is more than all tokens; a ratio is a share, so 0.3 allows 30 % of the finest "
                "level's tokens. For a number of tokens use tokens=."
            )
        if self.weight < 0:
            raise ConfigError(f"weight={self.weight} must be a finite number of 0 or more.")
        if self.per not in PER:
            raise ConfigError(f"per={self.per!r}; use one of {', '.join(PER)}.")

    @property
    def limits(self) -> bool:
        """Whether it can change what the scores alone would pick."""
        free = (None, None, 0.0, 0, -1)
        return (self.tokens, self.ratio, self.weight, self.floor, self.ceiling) != free


class BudgetPolicy(Policy):
    """Picks the best level that the budget allows; works with every router, trained or not, without retraining.

    Of the levels from ``floor`` to ``ceiling`` that cost no more than ``tokens`` or ``ratio`` allows, the one with the
    largest ``score - weight * tokens / finest`` wins; equals go to the cheaper one. Where nothing is allowed, the
    cheapest from ``floor`` on is taken, and the decision says what it costs. A tighter budget never costs more: that
    holds exactly, since levels are compared by the weight at which the cheaper one overtakes, which doesn't depend on
    the budget.

    With ``per="request"`` all images of a row of the batch share what is allowed: the smallest weight is added at which
    they fit together. What such a common price can't spend is left over.
    """

    Config = Budget

    def __init__(self, config: Budget, *, num_levels: int | None = None) -> None:
        super().__init__(config)
        self.budget = config
        if num_levels is not None and self._span(num_levels) is None:
            raise ConfigError(self._no_level(num_levels))

    @property
    def couples(self) -> bool:
        """Images of a request share its budget."""
        return self.budget.per == "request"

    @property
    def per_view(self) -> bool:
        """Tokens are counted tile by tile."""
        return self.budget.per == "tile"

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """The best allowed level per image.

        Raises:
            InputError: there are no levels from floor to ceiling.
        """
        permitted = self.between(scores.shape[-1]).to(scores.device).expand(tokens.shape)
        finest = tokens[:, -1:]
        if self.couples:
            return at_common_price(scores, tokens, permitted, self._allowed(finest.sum()), self.budget.weight)
        prices = overtaking(scores, tokens)
        weights = torch.full(scores.shape[:1], self.budget.weight, dtype=torch.float64, device=scores.device)
        allowed = permitted & (tokens <= self._allowed(finest))
        cheapest = tokens == tokens.masked_fill(~permitted, tokens.max() + 1).amin(-1, keepdim=True)
        allowed = torch.where(allowed.any(-1, keepdim=True), allowed, permitted & cheapest)
        return best_at(prices, tokens, allowed, weights)

    def between(self, levels: int) -> Bool[Tensor, " levels"]:
        """Which of so many levels lie from floor to ceiling.

        Raises:
            InputError: none does.
        """
        span = self._span(levels)
        if span is None:
            raise InputError(self._no_level(levels))
        places = torch.arange(levels)
        return (places >= span[0]) & (places <= span[1])

    def _span(self, levels: int) -> tuple[int, int] | None:
        floor, ceiling = (one + levels if one < 0 else one for one in (self.budget.floor, self.budget.ceiling))
        return (floor, ceiling) if 0 <= floor <= ceiling < levels else None

    def _no_level(self, levels: int) -> str:
        return (
            f"floor={self.budget.floor} and ceiling={self.budget.ceiling} leave no level; with {levels} levels use "
            f"0..{levels - 1} or -1 for the finest, the floor not above the ceiling."
        )

    def _allowed(self, finest: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        limit = torch.full_like(finest, math.inf, dtype=torch.float64)
        if self.budget.tokens is not None:
            limit = limit.clamp(max=self.budget.tokens)
        if self.budget.ratio is not None:
            limit = torch.minimum(limit, finest.double() * self.budget.ratio)
        return limit


def overtaking(
    scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
) -> Float[Tensor, "images levels other"]:
    """The weight from which on ``other`` is preferred to a level; infinite where it never is, since it isn't cheaper.

    Of levels that cost the same, the better one is preferred at any weight, the lower one of equals. A score of
    ``-inf`` is the least a float32 can be: what is allowed has the last word.
    """
    least = torch.finfo(torch.float32).min
    score, cost = scores.double().clamp(min=least), tokens.double() / tokens[:, -1:].clamp(min=1)
    better_by = score[:, :, None] - score[:, None, :]
    dearer_by = cost[:, :, None] - cost[:, None, :]
    price = better_by / dearer_by.clamp(min=torch.finfo(torch.float64).tiny)
    earlier = torch.ones(better_by.shape[-2:], dtype=torch.bool, device=scores.device).tril(-1)
    same = (dearer_by == 0) & ((better_by < 0) | ((better_by == 0) & earlier))
    price = price.masked_fill(dearer_by <= 0, math.inf)
    return price.masked_fill(same, -math.inf)


def best_at(
    prices: Float[Tensor, "images levels other"],
    tokens: Int[Tensor, "images levels"],
    permitted: Bool[Tensor, "images levels"],
    weights: Float[Tensor, " images"],
) -> Int[Tensor, " images"]:
    """The level with the largest ``score - weight * cost``: the dearest that no permitted one has overtaken.

    Args:
        prices: see `overtaking`.
        permitted: at least one level per image.
    """
    overtaken = ((prices <= weights[..., None, None]) & permitted[:, None, :]).any(-1)
    alive = permitted & ~overtaken
    return tokens.masked_fill(~alive, -1).argmax(-1)


def at_common_price(
    scores: Float[Tensor, "images levels"],
    tokens: Int[Tensor, "images levels"],
    permitted: Bool[Tensor, "images levels"],
    allowed: Float[Tensor, ""],
    least: float,
) -> Int[Tensor, " images"]:
    """The best levels at the lowest weight, ``least`` or more, at which they cost at most ``allowed`` together.

    Args:
        permitted: at least one level per image.
    """
    prices = overtaking(scores, tokens)
    weights = torch.full(scores.shape[:1], least, dtype=torch.float64, device=scores.device)
    return best_at(prices, tokens, permitted, shared_weight(prices, tokens, permitted, weights, allowed))


def shared_weight(
    prices: Float[Tensor, "images levels other"],
    tokens: Int[Tensor, "images levels"],
    permitted: Bool[Tensor, "images levels"],
    weights: Float[Tensor, " images"],
    allowed: Float[Tensor, ""],
) -> Float[Tensor, " images"]:
    """The smallest weight, ``weights`` or more, at which the images' tokens add up to ``allowed`` or less.

    Where even the cheapest levels cost more, the weight that picks those.
    """
    candidates = torch.cat([weights[:1], prices.flatten()])
    candidates = candidates.masked_fill(~candidates.isfinite(), -math.inf).clamp(min=weights[0]).sort().values
    candidates = torch.cat([candidates, candidates[-1:] + 1])
    # Totals never rise with the weight, so the first that fits is found by halving; the host reads nothing.
    low = torch.zeros((), dtype=torch.long, device=candidates.device)
    high = low + len(candidates) - 1
    for _ in range(len(candidates).bit_length()):
        middle = (low + high) // 2
        weight = candidates[middle].expand(len(tokens))
        total = tokens.gather(-1, best_at(prices, tokens, permitted, weight)[:, None]).sum()
        fits = total <= allowed
        low, high = torch.where(fits, low, torch.minimum(middle + 1, high)), torch.where(fits, middle, high)
    return candidates[high].expand(len(tokens))

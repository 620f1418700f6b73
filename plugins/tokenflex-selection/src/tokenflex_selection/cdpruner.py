"""Tokens that are relevant to the words and differ from one another: a conditional determinantal point process."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, cosines, kept_layouts
from tokenflex_selection.inputs import word_count, words_of
from tokenflex_selection.levels import nested
from tokenflex_selection.spread import ROUNDING, first_best, picked_once, row

EXHAUSTED = 1e-5
"""Share of a token's own weight that kept tokens leave unexplained, below which it counts as a combination of them."""
LAST = -1e30
"""Log-score of a token that adds nothing, above that of a token already kept."""


class CDPrunerScaler(Scaler):
    """Greedy MAP of a DPP whose kernel is similarity weighted by relevance (CDPruner, arXiv 2506.10967).

    Relevance r is a token's mean cosine with the words, scaled to 0..1 per view; the kernel is r_i * c_ij * r_j, or,
    with ``theta``, r is replaced by exp(alpha * r), alpha = theta / (2 * (1 - theta)). Without words r is 1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            theta: weight of relevance against diversity, at least 0 (words are ignored), below 1; None: the kernel
                is weighted by relevance itself.
        """

        ratios: Ratios = RATIOS
        theta: float | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        if config.theta is not None and not 0 <= config.theta < 1:
            raise ConfigError(
                f"theta={config.theta!r} must be at least 0 and below 1; None weights by relevance itself."
            )
        self.alpha = None if config.theta is None else config.theta / (2 * (1 - config.theta))

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    @property
    def needs(self) -> frozenset[Need]:
        """The instruction."""
        return frozenset({"instruction"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep relevant and diverse tokens, in the order of the grid.

        Raises:
            InputError: the tokens come without an instruction.
        """
        return nested(tokens, self.granularities(tokens.grid)[level:][:1], self._order)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one order."""
        return nested(tokens, self.granularities(tokens.grid), self._order)

    def _order(self, tokens: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        relevance = _relevance(tokens)
        log_weights = relevance.log() if self.alpha is None else self.alpha * relevance
        return _greedy_map(cosines(tokens.features, tokens.features), 2 * log_weights, count)


def _relevance(tokens: VisualTokens) -> Float[Tensor, "*batch views tokens"]:
    """Mean cosine with the words, scaled to 0..1 per view; 1 where all are equally relevant."""
    words, mask = words_of(tokens)
    mean = cosines(words, tokens.features).sum(-2) / word_count(mask)[..., None]
    low, high = mean.amin(-1, keepdim=True), mean.amax(-1, keepdim=True)
    return torch.where(high - low > ROUNDING, (mean - low) / (high - low), 1.0)


def _greedy_map(
    similarity: Float[Tensor, "*batch tokens tokens"], log_weights: Float[Tensor, "*batch tokens"], count: int
) -> Int[Tensor, "*batch count"]:
    """Picks in the order in which they enlarge the determinant most.

    Weights multiply a token's conditional variance whatever is kept, so they stay out of the decomposition. Tokens that
    are combinations of kept ones come last, by index.
    """
    variance = similarity.diagonal(dim1=-2, dim2=-1)
    enough = EXHAUSTED * variance
    taken = torch.zeros_like(variance, dtype=torch.bool)
    factors = variance.new_zeros(count, *variance.shape)
    picks: list[Tensor] = []
    for step in range(count):
        score = torch.where(variance > enough, variance.clamp(min=1e-30).log() + log_weights, LAST).clamp(min=LAST)
        pick = first_best(score.masked_fill(taken, float("-inf")), ROUNDING)
        picks.append(pick)
        taken = taken | picked_once(variance, pick)
        here = pick[..., None]
        before = factors[:step].gather(-1, here.expand(step, *here.shape))
        factor = row(similarity, pick) - (factors[:step] * before).sum(0)
        left = variance.gather(-1, here)
        factors[step] = torch.where(left > enough.gather(-1, here), factor / left.clamp(min=1e-30).sqrt(), 0.0)
        variance = variance - factors[step].square()
    return torch.stack(picks, dim=-1)

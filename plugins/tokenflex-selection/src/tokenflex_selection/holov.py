"""Every part of the picture gets its share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import beside
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, cosines, kept_layouts
from tokenflex.ops.pooling import pooled_grid, window_assignment
from tokenflex_selection.apportion import apportion
from tokenflex_selection.inputs import attention_of
from tokenflex_selection.levels import separate
from tokenflex_selection.settings import at_least_zero, positive, whole


class HoloVScaler(Scaler):
    """Shares the kept tokens out over crops of the grid, and keeps the best of each (HoloV, arXiv 2510.02912).

    A token's score is its attention, as a share of the view's largest, plus ``diversity`` times 1 - its mean cosine
    with the other tokens of its crop. A crop's number of tokens is proportional to the softmax of its total score.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of a view's tokens kept per level, coarse to fine.
            crops: (rows, cols) of crops the grid is cut into; the last ones are smaller, or missing, where it doesn't
                come out even.
            diversity: weight of local diversity against attention.
            temperature: of the softmax over the crops; the larger, the more evenly tokens are shared out.
        """

        ratios: Ratios = RATIOS
        crops: tuple[int, int] = (4, 4)
        diversity: float = 1.0
        temperature: float = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)
        if len(config.crops) != 2:
            raise ConfigError(f"crops={config.crops!r} must be a pair, e.g. (4, 4): rows and columns of crops.")
        self.crops = tuple(whole(f"crops[{axis}]", config.crops[axis]) for axis in (0, 1))
        self.diversity = at_least_zero("diversity", config.diversity)
        self.temperature = positive("temperature", config.temperature)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    @property
    def needs(self) -> frozenset[Need]:
        """Attention."""
        return frozenset({"attention"})

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the best of each crop, in the order of the grid.

        Raises:
            InputError: the tokens come without attention.
        """
        return separate(tokens, self.granularities(tokens.grid)[level:][:1], self._prepare)[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one set of scores."""
        return separate(tokens, self.granularities(tokens.grid), self._prepare)

    def _prepare(self, tokens: VisualTokens) -> Callable[[int], Tensor]:
        grid = tokens.grid
        window = (-(-grid.rows // self.crops[0]), -(-grid.cols // self.crops[1]))
        crop = beside(window_assignment(grid, window), tokens.features)
        members = crop[:, None] == torch.arange(pooled_grid(grid, window).tokens, device=crop.device)
        together = crop[:, None] == crop
        attention = attention_of(tokens)
        scores = attention / attention.amax(-1, keepdim=True).clamp(min=1e-30)
        scores = scores + self.diversity * _local_diversity(tokens.features, together)
        totals = torch.where(members, scores[..., None], 0.0).sum(-2)
        weights = (totals / self.temperature).softmax(-1)
        place = _rank(scores, together)

        def pick(count: int) -> Int[Tensor, "*batch views count"]:
            quotas = apportion(weights, members.sum(0), count)
            kept = place < quotas.gather(-1, crop.expand(place.shape))
            return kept.int().argsort(dim=-1, descending=True, stable=True)[..., :count]

        return pick


def _local_diversity(
    features: Float[Tensor, "*batch tokens dim"], together: Bool[Tensor, "tokens tokens"]
) -> Float[Tensor, "*batch tokens"]:
    """1 - mean cosine with the others of the crop; 1 where there are none."""
    others = together & ~torch.eye(len(together), dtype=torch.bool, device=together.device)
    found = torch.where(others, cosines(features, features), 0.0).sum(-1)
    return 1 - found / others.sum(-1).clamp(min=1)


def _rank(
    scores: Float[Tensor, "*batch tokens"], together: Bool[Tensor, "tokens tokens"]
) -> Int[Tensor, "*batch tokens"]:
    """How many tokens of its crop come before a token: better ones, and equal ones of lower index."""
    other, own = scores[..., None, :], scores[..., None]
    earlier = torch.ones_like(together).tril(-1)
    return (together & ((other > own) | ((other == own) & earlier))).sum(-1)

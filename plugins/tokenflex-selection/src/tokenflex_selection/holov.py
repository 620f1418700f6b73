"""Every part of the image gets its share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import on_device_of
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts
from tokenflex.ops.pooling import window_assignment
from tokenflex_selection.apportion import apportion
from tokenflex_selection.inputs import attention_of
from tokenflex_selection.levels import separate
from tokenflex_selection.settings import at_least_zero, positive, whole


class HoloVScaler(Scaler):
    """Shares the kept tokens out over crops of the grid, and keeps the best of each (HoloV, arXiv 2510.02912).

    A token's score is its attention, as a share of the view's largest, plus ``diversity`` times 1 - its mean cosine
    with the other tokens of its crop. A crop's number of tokens is proportional to the softmax of its total score. The
    released code differs: its crops are stretches of the row-major order, their scores hold the variance of the cosines
    and enter linearly, and inside a crop attention alone decides.
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
        self.crops = (whole("crops[0]", config.crops[0]), whole("crops[1]", config.crops[1]))
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
        attention = attention_of(tokens)
        order, sizes = _crops(tokens.grid, self.crops)
        order = on_device_of(order, attention)
        held = on_device_of(torch.tensor(sizes), attention)
        crop = torch.arange(len(sizes), device=held.device).repeat_interleave(held, output_size=len(order))
        # From here on tokens are in the order of their crops.
        shares = (attention / attention.amax(-1, keepdim=True).clamp(min=1e-30)).index_select(-1, order)
        scores = shares + self.diversity * _local_diversity(tokens.features, order, sizes)
        totals = torch.stack([part.sum(-1) for part in scores.split(sizes, dim=-1)], dim=-1)
        weights = (totals / self.temperature).softmax(-1)
        rank = _rank(scores, crop, held)

        def pick(count: int) -> Int[Tensor, "*batch views count"]:
            kept = rank < apportion(weights, held, count).index_select(-1, crop)
            return order[kept.int().argsort(dim=-1, descending=True, stable=True)[..., :count]]

        return pick


def _crops(grid: Grid, crops: tuple[int, int]) -> tuple[Int[Tensor, " tokens"], list[int]]:
    """(places of the tokens of the first crop, of the second, ..., how many tokens each crop has).

    Args:
        crops: rows and columns of crops.
    """
    window = (-(-grid.rows // crops[0]), -(-grid.cols // crops[1]))
    heights = [min(window[0], grid.rows - row) for row in range(0, grid.rows, window[0])]
    widths = [min(window[1], grid.cols - col) for col in range(0, grid.cols, window[1])]
    sizes = [height * width for height in heights for width in widths]
    return window_assignment(grid, window).argsort(stable=True), sizes


def _local_diversity(
    features: Float[Tensor, "*batch tokens dim"], order: Int[Tensor, " tokens"], sizes: Sequence[int]
) -> Float[Tensor, "*batch tokens"]:
    """1 - mean cosine with the others of the crop, 1 where there are none; crop after crop.

    A token's cosines add up to its product with the sum of the crop's unit vectors: no two tokens are compared.

    Args:
        order: places of the first crop's tokens, of the second's, ...
        sizes: tokens of each crop.
    """
    lengths = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).index_select(-1, order)
    to_unit = 1 / lengths.clamp(min=1e-12)
    found: list[Tensor] = []
    with torch.autocast(features.device.type, enabled=False):
        # Crop by crop, so that a crop's tokens stay near at hand.
        parts = (order.split(sizes), lengths.split(sizes, dim=-1), to_unit.split(sizes, dim=-1))
        for places, length, weights in zip(*parts, strict=True):
            crop = features.index_select(-2, places).float()
            cosines = weights * (crop * (weights[..., None, :] @ crop)).sum(-1)
            others = (cosines - (weights * length).square()) / max(len(places) - 1, 1)
            found.append(1 - others if len(places) > 1 else torch.ones_like(others))
    return torch.cat(found, dim=-1)


def _rank(
    scores: Float[Tensor, "*batch tokens"], crop: Int[Tensor, " tokens"], sizes: Int[Tensor, " crops"]
) -> Int[Tensor, "*batch tokens"]:
    """How many tokens of its crop come before a token: better ones, and equal ones of lower index.

    Args:
        scores: of the tokens, crop after crop.
        crop: the crop of every token, ascending.
        sizes: tokens of each crop.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    best_first = order.gather(-1, crop[order].argsort(dim=-1, stable=True))
    numbers = torch.arange(len(crop), device=crop.device) - (sizes.cumsum(0) - sizes)[crop]
    return torch.empty_like(order).scatter(-1, best_first, numbers.expand(order.shape))

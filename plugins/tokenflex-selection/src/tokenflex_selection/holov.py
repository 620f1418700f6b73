"""Every part of the image gets its share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Count, Grid, NotNegative, Positive, VisualTokens
from tokenflex.ops.assignment import on_device_of
from tokenflex.ops.keeping import ranked
from tokenflex.ops.needed import attention_of
from tokenflex.ops.pooling import window_assignment
from tokenflex.scalers import SelectionScaler
from tokenflex_selection.apportion import apportion


class HoloVScaler(SelectionScaler):
    """Shares the kept tokens out over crops of the grid, and keeps the best of each (HoloV, arXiv 2510.02912).

    A token's score is its attention, as a share of the view's largest, plus ``diversity`` times 1 - its mean cosine
    with the other tokens of its crop. A crop's number of tokens is proportional to the softmax of its total score. The
    released code differs: its crops are stretches of the row-major order, their scores hold the variance of the cosines
    and enter linearly, and inside a crop attention alone decides.
    """

    reads = ("attention",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SelectionScaler.Config):
        """Settings.

        Attributes:
            crops: (rows, cols) of crops the grid is cut into; the last ones are smaller, or missing, where it doesn't
                come out even.
            diversity: weight of local diversity against attention.
            temperature: of the softmax over the crops; the larger, the more evenly tokens are shared out.
        """

        crops: tuple[Count, Count] = (4, 4)
        diversity: NotNegative = 1.0
        temperature: Positive = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.crops, self.diversity, self.temperature = config.crops, config.diversity, config.temperature

    def picks(self, image: VisualTokens, counts: Sequence[int]) -> list[Int[Tensor, "*batch views _"]]:
        """The best of each crop."""
        attention = attention_of(image.attention, "HoloV")
        order, sizes = _crops(image.grid, self.crops)
        order = on_device_of(order, attention)
        held = on_device_of(torch.tensor(sizes), attention)
        crop = torch.arange(len(sizes), device=held.device).repeat_interleave(held, output_size=len(order))
        # From here on tokens are in the order of their crops.
        shares = (attention / attention.amax(-1, keepdim=True).clamp(min=1e-30)).index_select(-1, order)
        scores = shares + self.diversity * _local_diversity(image.features, order, sizes)
        totals = torch.stack([part.sum(-1) for part in scores.split(sizes, dim=-1)], dim=-1)
        weights = (totals / self.temperature).softmax(-1)
        rank = _rank(scores, crop, held)
        picked: list[Tensor] = []
        for count in counts:
            kept = rank < apportion(weights, held, count).index_select(-1, crop)
            picked.append(order[ranked(kept.int(), count)])
        return picked


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

"""How an image or video lies in the prompt and in the encoder's output, for hosts that pack tiles and frames."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid
from tokenflex.ops.packing import NEWLINE, Unpad, anyres_count, anyres_order, shrunk_canvas, visible_cells


@dataclass(frozen=True, kw_only=True)
class PlaceholderRun(ABC):
    """How one image or video lies in the prompt and in the encoder's output.

    Attributes:
        grid: tokens of one view before scaling.
    """

    grid: Grid

    @property
    @abstractmethod
    def placeholders(self) -> int:
        """How many stand in the full prompt."""

    @property
    def frames(self) -> int:
        """Of a video, whose neighbouring frames may be merged; 0 for images."""
        return 0

    @abstractmethod
    def count(self, kept: Grid | int, frames: int | None = None) -> int:
        """Placeholders once each view keeps ``kept``, newlines included.

        Args:
            frames: how many are left of a video; None: all.
        """

    @abstractmethod
    def unpack(self, packed: Float[Tensor, "packed dim"]) -> Float[Tensor, "views tokens dim"]:
        """The views of the host's packing, which must show the whole canvas."""

    @abstractmethod
    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The host's order as indices into the flattened ``(views, kept)`` tokens, ``NEWLINE`` for newlines."""

    def canvas(self, kept: Grid | int) -> tuple[Int[np.ndarray, "rows cols"], Grid] | None:
        """(cells of the local tiles, grid they are resampled to) where the host shrinks a canvas; else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Tiled(PlaceholderRun):
    """An image: the whole of it as one tile, then its local tiles, joined, unpadded, every row with a newline.

    Attributes:
        tiles: local ones, down and across.
        size: (height, width) of the image in pixels.
        unpad, most: see `tokenflex.ops.packing`.
    """

    tiles: Grid
    size: tuple[int, int]
    unpad: Unpad = "geometric"
    most: int | None = None

    @property
    def placeholders(self) -> int:
        """As transformers counts them."""
        return anyres_count(self.tiles, self.grid, self.grid, self.size, "geometric", self.most)

    def count(self, kept: Grid | int, frames: int | None = None) -> int:
        """Tokens that form no grid are neither unpadded nor shrunk."""
        return anyres_count(self.tiles, self.grid, kept, self.size, self.unpad, self.most)

    def unpack(self, packed: Float[Tensor, "packed dim"]) -> Float[Tensor, "views tokens dim"]:
        """From the packing of an image that fills its canvas."""
        grid, tiles = self.grid, self.tiles
        lines = packed[grid.tokens :].view(tiles.rows * grid.rows, tiles.cols * grid.cols + 1, -1)[:, :-1]
        local = rearrange(lines, "(tr r) (tc c) d -> (tr tc) (r c) d", tr=tiles.rows, tc=tiles.cols, r=grid.rows)
        return torch.cat([packed[None, : grid.tokens], local])

    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The whole of the image, then the lines of the canvas."""
        return anyres_order(self.tiles, self.grid, kept, self.size, self.unpad)

    def canvas(self, kept: Grid | int) -> tuple[Int[np.ndarray, "rows cols"], Grid] | None:
        """That of a canvas beyond ``most``."""
        if not isinstance(kept, Grid) or self.most is None:
            return None
        cells = visible_cells(self.tiles, self.grid, kept, self.size, self.unpad)
        canvas = Grid(*cells.shape)
        smaller = shrunk_canvas(canvas, self.most * kept.tokens)
        return None if smaller == canvas else (cells, smaller)


@dataclass(frozen=True, kw_only=True)
class Strip(PlaceholderRun):
    """Views one behind the other: an image of one tile, or the frames of a video.

    Attributes:
        views: how many.
        ends: newlines behind the last one.
        video: the views are frames.
    """

    views: int = 1
    ends: int = 0
    video: bool = False

    @property
    def placeholders(self) -> int:
        """Every token of every view, and what ends them."""
        return self.count(self.grid)

    @property
    def frames(self) -> int:
        """All views of a video."""
        return self.views if self.video else 0

    def count(self, kept: Grid | int, frames: int | None = None) -> int:
        """The same for kept tokens."""
        views = self.views if frames is None else frames
        return views * (kept.tokens if isinstance(kept, Grid) else kept) + self.ends

    def unpack(self, packed: Float[Tensor, "packed dim"]) -> Float[Tensor, "views tokens dim"]:
        """All but what ends them."""
        return packed[: self.views * self.grid.tokens].unflatten(0, (self.views, self.grid.tokens))

    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """View after view."""
        tokens = views * (kept.tokens if isinstance(kept, Grid) else kept)
        return np.append(np.arange(tokens), [NEWLINE] * self.ends).astype(np.int64)


def packed(
    runs: Sequence[PlaceholderRun],
    features: Sequence[Tensor],
    layouts: Sequence[Grid | int],
    newline: Float[Tensor, " dim"],
) -> list[Tensor]:
    """Kept tokens of all images and videos in the host's order, newlines in place; all are gathered at once.

    Args:
        features: of each ``(views, kept, dim)``; the result has ``(packed, dim)`` of each.
        layouts: of the kept tokens of one view.
    """
    found: list[Tensor | None] = [
        _shrunk(run, each, kept, newline) for run, each, kept in zip(runs, features, layouts, strict=True)
    ]
    rest = [i for i, done in enumerate(found) if done is None]
    if not rest:
        return [each for each in found if each is not None]
    orders = [runs[i].order(layouts[i], len(features[i])) for i in rest]
    sizes = [features[i].shape[0] * features[i].shape[1] for i in rest]
    starts, last = np.cumsum([0, *sizes[:-1]]), sum(sizes)
    places = np.concatenate([np.where(o == NEWLINE, last, o + at) for o, at in zip(orders, starts, strict=True)])
    first = features[rest[0]]
    table = torch.cat([*(features[i].flatten(0, 1) for i in rest), newline.to(first)[None]])
    pieces = table.index_select(0, torch.from_numpy(places).to(first.device)).split([len(order) for order in orders])
    for i, piece in zip(rest, pieces, strict=True):
        found[i] = piece
    return [each for each in found if each is not None]


def _shrunk(
    run: PlaceholderRun, features: Float[Tensor, "views kept dim"], kept: Grid | int, newline: Float[Tensor, " dim"]
) -> Tensor | None:
    """An image whose canvas is resampled before its rows get their newlines, as the host does; else None."""
    canvas = run.canvas(kept)
    if canvas is None:
        return None
    cells, smaller = canvas
    places = torch.from_numpy(cells.copy()).to(features.device)
    lines = _resampled(features.flatten(0, 1)[places], smaller)
    lines = torch.cat([lines, newline.to(lines).expand(smaller.rows, 1, -1)], dim=1)
    return torch.cat([features[0], lines.flatten(0, 1)])


def _resampled(canvas: Float[Tensor, "rows cols dim"], target: Grid) -> Float[Tensor, "target_rows target_cols dim"]:
    """Bilinear, in the features' own type and memory layout: bit for bit what the host computes."""
    planes = canvas.permute(2, 0, 1).contiguous()[None]
    return F.interpolate(planes, (target.rows, target.cols), mode="bilinear")[0].permute(1, 2, 0)

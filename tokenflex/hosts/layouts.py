"""How an image or video lies in the prompt and in the encoder's output.

There are two forms. `GridLayout`: views of one grid, one behind the other, with marks around them. `TiledLayout`: the
whole image, then its tiles joined to one canvas (LLaVA-NeXT and its kin).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid
from tokenflex.ops.packing import NEWLINE, Unpad, anyres_count, anyres_order, shrunk_canvas, visible_cells

Runs = Literal["whole", "views", "rows"]


def as_grid(kept: Grid | int) -> Grid:
    """The grid of a view's kept tokens; tokens that form none count as one row."""
    return kept if isinstance(kept, Grid) else Grid(1, kept)


@dataclass(frozen=True, kw_only=True)
class ImageLayout(ABC):
    """How one image or video lies in the prompt and in the encoder's output.

    A view's kept tokens are given as their grid, or as their number where they form none. Separators are placeholders
    like the tokens, and a scaler never takes them for tokens.

    Attributes:
        grid: tokens of one view before scaling.
        views: crops of an image, or frames of a video.
        video: the views are frames, which may be merged; otherwise they are crops.
    """

    grid: Grid
    views: int = 1
    video: bool = False

    @property
    def frames(self) -> int:
        """The number of frames, of a video whose frames may be merged; 0 for images."""
        return self.views * self.video

    @property
    def leads(self) -> bool:
        """Whether the prompt tokens before a run of placeholders belong to that run; see `Span.leads`."""
        return False

    @property
    def placeholders(self) -> int:
        """Placeholders in the full prompt."""
        return self.count(self.grid)

    @abstractmethod
    def count(self, kept: Grid | int, views: int | None = None) -> int:
        """Placeholders in all once each view keeps ``kept``, separators included.

        Args:
            views: how many views are left of a video; None: all of them.
        """

    def per_run(self, kept: Grid | int, frames: Sequence[int] | None = None) -> tuple[int, ...]:
        """Placeholders of each run that they form in the text, once each view keeps ``kept``.

        Args:
            frames: for each frame of a video the number of the kept frame that it went into; None: all are kept.
        """
        return (self.count(kept, None if frames is None else len(set(frames))),)

    def per_run_as(self, smaller: "ImageLayout") -> tuple[int, ...]:
        """Placeholders that each run is left with where the image is encoded at a smaller size.

        Args:
            smaller: how the image lies at that size.
        """
        return (smaller.placeholders,)

    def apart(self) -> tuple["ImageLayout", ...]:
        """Every view as an image of its own, where the views can be routed one by one; else the image itself."""
        return (self,)

    @abstractmethod
    def unpack(
        self, packed: Float[Tensor, "*batch placeholders dim"]
    ) -> tuple[Float[Tensor, "*batch views tokens dim"], Float[Tensor, "*batch separators dim"] | None]:
        """(Tokens of every view, separators) of what the encoder made.

        Separators are None where there are none, or where they are a parameter of the host.
        """

    @abstractmethod
    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The host's order, as indices into the flattened ``(views, kept)`` tokens followed by the separators.

        Args:
            views: how many views are left.
        """

    def canvas(self, kept: Grid | int) -> tuple[Int[np.ndarray, "rows cols"], Grid] | None:
        """(Cells of the local tiles, grid they are resampled to) where the host shrinks a canvas; else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class GridLayout(ImageLayout):
    """Views of one grid, one behind the other: an image, a tile, or the frames of a video.

    The order is: ``begin`` marks; the views' tokens, row-major, with one more mark behind each row if ``newline``;
    ``end`` marks. Marks keep their number at every level (newlines: one per kept row).

    Attributes:
        runs: the runs that the placeholders form in the text: ``whole``, one (whatever lies between); ``views``, one
            per view, with text tokens before each that go when the view goes; ``rows``, one per row of tokens, with a
            word behind each that goes when the row goes.
        begin: marks in front of the tokens.
        end: marks behind them.
        newline: a mark stands behind each row of tokens.
    """

    runs: Runs = "whole"
    begin: int = 0
    end: int = 0
    newline: bool = False

    @property
    def leads(self) -> bool:
        """Of views in runs of their own, each has text tokens before it (the time of a frame)."""
        return self.runs == "views"

    def count(self, kept: Grid | int, views: int | None = None) -> int:
        """Every kept token of every view, and the marks; an image in ``rows`` keeps one row at least."""
        grid = as_grid(kept)
        if self.runs == "rows":
            return grid.cols * max(min(grid.rows, self.grid.rows), 1)
        tokens = (self.views if views is None else views) * grid.rows * (grid.cols + self.newline)
        return tokens if self.runs == "views" else self.begin + tokens + self.end

    def per_run(self, kept: Grid | int, frames: Sequence[int] | None = None) -> tuple[int, ...]:
        """One number, or one per view or row; a view that was merged into the one before it keeps nothing."""
        if self.runs == "whole":
            return super().per_run(kept, frames)
        grid = as_grid(kept)
        if self.runs == "rows":
            rows = max(min(grid.rows, self.grid.rows), 1)
            return (*(grid.cols,) * (rows - 1), *(0,) * (self.grid.rows - rows), grid.cols)
        size = grid.rows * (grid.cols + self.newline)
        into = list(range(self.views)) if frames is None else list(frames)
        return tuple(size * (i == 0 or into[i] != into[i - 1]) for i in range(self.views))

    def per_run_as(self, smaller: ImageLayout) -> tuple[int, ...]:
        """Of the same runs where the image has as many views; otherwise of one run."""
        return self.per_run(smaller.grid) if smaller.views == self.views else super().per_run_as(smaller)

    def apart(self) -> tuple[ImageLayout, ...]:
        """Crops with neither text nor marks between them can be routed one by one; frames of a video can't."""
        alone = self.runs == "whole" and not (self.video or self.separators)
        return (replace(self, views=1),) * self.views if alone else (self,)

    @property
    def separators(self) -> int:
        """The marks in front, one newline if there are any, and the marks behind."""
        return self.begin + self.newline + self.end

    def unpack(
        self, packed: Float[Tensor, "*batch placeholders dim"]
    ) -> tuple[Float[Tensor, "*batch views tokens dim"], Float[Tensor, "*batch marks dim"] | None]:
        """(tokens, marks); of the newlines, which are all the same, the first one is taken."""
        if not self.separators:
            return packed.unflatten(-2, (self.views, self.grid.tokens)), None
        begin, lines, end = packed.tensor_split([self.begin, packed.shape[-2] - self.end], dim=-2)
        table = lines.unflatten(-2, (self.views, self.grid.rows, self.grid.cols + self.newline))
        tokens = table[..., : self.grid.cols, :].flatten(-3, -2)
        return tokens, torch.cat([begin, *([table[..., 0, :1, -1, :]] if self.newline else []), end], dim=-2)

    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The marks in front, the views' rows with their newlines, the marks behind."""
        grid = as_grid(kept)
        tokens = views * grid.tokens
        table = np.arange(tokens).reshape(-1, grid.cols)
        first = tokens + self.begin
        if self.newline:
            table = np.pad(table, ((0, 0), (0, 1)), constant_values=first)
        begin = np.arange(tokens, first)
        end = np.arange(first + self.newline, first + self.newline + self.end)
        return np.concatenate([begin, table.ravel(), end])


@dataclass(frozen=True, kw_only=True)
class TiledLayout(ImageLayout):
    """An image: the whole of it as one tile, then its local tiles, joined, unpadded, every row with a newline.

    The number of views follows from the tiles.

    Attributes:
        tiles: local ones, down and across.
        size: (height, width) of the image in pixels.
        unpad: see `tokenflex.ops.packing`.
        most: see `tokenflex.ops.packing`.
    """

    tiles: Grid
    size: tuple[int, int]
    unpad: Unpad = "geometric"
    most: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", 1 + self.tiles.tokens)

    @property
    def placeholders(self) -> int:
        """The number that transformers writes into the prompt, whatever ``unpad`` is."""
        return anyres_count(self.tiles, self.grid, self.grid, self.size, "geometric", self.most)

    def count(self, kept: Grid | int, views: int | None = None) -> int:
        """Kept tokens and newlines; tokens that form no grid are neither unpadded nor shrunk."""
        return anyres_count(self.tiles, self.grid, kept, self.size, self.unpad, self.most)

    def unpack(
        self, packed: Float[Tensor, "*batch placeholders dim"]
    ) -> tuple[Float[Tensor, "*batch views tokens dim"], None]:
        """The tokens, from the packing of an image that fills its canvas, so that no token was cut off."""
        grid, tiles = self.grid, self.tiles
        lines = packed[..., grid.tokens :, :].unflatten(-2, (tiles.rows * grid.rows, tiles.cols * grid.cols + 1))
        cut = "... (tr r) (tc c) d -> ... (tr tc) (r c) d"
        local = rearrange(lines[..., :-1, :], cut, tr=tiles.rows, tc=tiles.cols, r=grid.rows)
        whole = packed[..., None, : grid.tokens, :]
        return torch.cat([whole, local], dim=-3), None

    def order(self, kept: Grid | int, views: int) -> Int[np.ndarray, " packed"]:
        """The whole of the image, then the lines of the canvas, a newline behind each."""
        packed = anyres_order(self.tiles, self.grid, kept, self.size, self.unpad)
        return np.where(packed == NEWLINE, views * as_grid(kept).tokens, packed)

    def canvas(self, kept: Grid | int) -> tuple[Int[np.ndarray, "rows cols"], Grid] | None:
        """Those of a canvas of more than ``most`` tiles' worth of tokens."""
        if not isinstance(kept, Grid) or self.most is None:
            return None
        cells = visible_cells(self.tiles, self.grid, kept, self.size, self.unpad)
        canvas = Grid(*cells.shape)
        smaller = shrunk_canvas(canvas, self.most * kept.tokens)
        return None if smaller == canvas else (cells, smaller)

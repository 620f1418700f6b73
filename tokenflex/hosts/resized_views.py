"""Smaller pictures for hosts that take each picture as a view of its own: stacked, padded, or of one fixed size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Grid, HostBatch
from tokenflex.contracts.scaler import shrunk
from tokenflex.hosts.architecture import Modality, Unit
from tokenflex.hosts.resizing import Call, Picture, Resizing, shared
from tokenflex.ops import pixels

Size = tuple[int, int]


@final
@dataclass(frozen=True)
class Squares(Resizing):
    """Pictures of one fixed size, for towers whose position embeddings can be interpolated.

    The host's encoder is told to by ``interpolate_pos_encoding``, and called once per size.
    """

    levels: ClassVar[str] = "a smaller square of whole patches, position embeddings interpolated"

    def picture(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, unit: Unit, share: float
    ) -> Picture:
        """Of so many whole patches along a side."""
        return Picture(number=number, full=unit, unit=replace(unit, grid=shrunk(unit.grid, share)))

    def calls(self, config: Any, modality: Modality, batch: HostBatch, pictures: Sequence[Picture]) -> list[Call]:
        """One per size."""
        values, found = batch.inputs[modality.pixels], list[Call]()
        for grid in dict.fromkeys(picture.unit.grid for picture in pictures):
            which = tuple(k for k, picture in enumerate(pictures) if picture.unit.grid == grid)
            full = pictures[which[0]].full.grid
            mine = values[torch.tensor([pictures[k].number for k in which]).to(values.device)]
            size = (mine.shape[-2] // full.rows * grid.rows, mine.shape[-1] // full.cols * grid.cols)
            told = {} if grid == full else {"interpolate_pos_encoding": True}
            given = {**shared(modality, batch), **told, modality.pixels: pixels.resampled(mine, size)}
            found.append(Call(which, given))
        return found


@final
@dataclass(frozen=True)
class Padded(Resizing):
    """Pictures of any size, stacked and padded below and to the right, with their (height, width) in pixels.

    Attributes:
        sizes: the input of heights and widths.
    """

    levels: ClassVar[str] = "whole tokens in height and width, rounded down"

    sizes: str = "image_sizes"

    @property
    def setting(self) -> str | None:
        """The longest edge."""
        return "size"

    def picture(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, unit: Unit, share: float
    ) -> Picture:
        """Of so many whole tokens in height and width; one at its own size keeps it to the pixel."""
        size, grid = batch.cpu[self.sizes][number], shrunk(unit.grid, share)
        if grid != unit.grid:
            full, kept = (torch.tensor([one.rows, one.cols], dtype=size.dtype) for one in (unit.grid, grid))
            size = size // full * kept
        return Picture(number=number, full=unit, unit=replace(unit, grid=grid), sizes={self.sizes: size})

    def calls(self, config: Any, modality: Modality, batch: HostBatch, pictures: Sequence[Picture]) -> list[Call]:
        """One, padded to the largest of the pictures asked for."""
        given, told = batch.inputs[modality.pixels], batch.cpu[self.sizes]
        sizes = torch.stack([picture.sizes[self.sizes] for picture in pictures])
        before: list[Size] = [tuple(told[picture.number].tolist()) for picture in pictures]
        after: list[Size] = [tuple(size) for size in sizes.tolist()]
        values = [given[p.number, :, :h, :w] for p, (h, w) in zip(pictures, before, strict=True)]
        made = pixels.together(
            values, list(zip(before, after, strict=True)), lambda stacked, at: pixels.resampled(stacked, after[at])
        )
        height, width = (max(size[axis] for size in after) for axis in (0, 1))
        stacked = torch.stack([F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in made])
        own = {self.sizes: sizes.to(batch.inputs[self.sizes].device), modality.pixels: stacked}
        return [Call(tuple(range(len(pictures))), {**shared(modality, batch, self.sizes), **own})]

    def processor_kwargs(self, config: Any, picture: Picture, tokens: int) -> Mapping[str, Any]:
        """``size``: the longest edge of the largest picture of at most so many tokens.

        The processor shrinks a picture to that edge and rounds the other one up.
        """
        grid, (height, width) = picture.full.grid, picture.sizes[self.sizes].tolist()
        longest, other = max(grid.rows, grid.cols), min(grid.rows, grid.cols)
        fitting = [k for k in range(1, longest + 1) if k * math.ceil(k * other / longest) <= tokens]
        return {"size": {"longest_edge": max(height, width) // longest * (fitting[-1] if fitting else 1)}}


GEMMA_BUDGETS = (70, 140, 280, 560, 1120)
"""Tokens per picture that Gemma 4's processors know."""


@final
@dataclass(frozen=True)
class Placed(Resizing):
    """Patches row by row, with the (column, row) of each, padded with places of -1, as Gemma 4 takes them.

    Attributes:
        pooled: patches are smaller than tokens, by the tower's ``pooling_kernel_size``.
        places: the input of columns and rows.
    """

    levels: ClassVar[str] = "whole tokens in height and width, rounded down"

    pooled: bool = True
    places: str = "image_position_ids"

    @property
    def setting(self) -> str | None:
        """One of `GEMMA_BUDGETS`."""
        return "max_soft_tokens"

    def picture(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, unit: Unit, share: float
    ) -> Picture:
        """Of so many whole tokens in height and width."""
        grid = shrunk(unit.grid, share)
        picture = Picture(number=number, full=unit, unit=replace(unit, grid=grid))
        if grid == unit.grid:
            return picture
        places = self._places(config, grid)
        fill = batch.cpu[self.places].shape[1] - len(places)
        padded = F.pad(places, (0, 0, 0, fill), value=-1)
        return replace(picture, sizes={self.places: padded})

    def calls(self, config: Any, modality: Modality, batch: HostBatch, pictures: Sequence[Picture]) -> list[Call]:
        """One, padded to the largest of the pictures asked for."""
        given, own = batch.inputs[modality.pixels], batch.inputs[self.places]
        grids = [picture.full.grid for picture in pictures]
        counts = [len(self._places(config, grid)) for grid in grids]
        values = [given[p.number, :count] for p, count in zip(pictures, counts, strict=True)]
        kinds = [(picture.full.grid, picture.unit.grid) for picture in pictures]
        made = pixels.together(values, kinds, lambda stacked, at: self._resized(stacked, config, *kinds[at]))
        places = [self._places(config, picture.unit.grid) for picture in pictures]
        most = max(map(len, places))
        if all(picture.unit.grid == picture.full.grid for picture in pictures):
            most = given.shape[1]
        stacked = torch.stack([F.pad(one, (0, 0, 0, most - len(one))) for one in made])
        told = torch.stack([F.pad(one, (0, 0, 0, most - len(one)), value=-1) for one in places])
        inputs = {**shared(modality, batch, self.places), modality.pixels: stacked, self.places: told.to(own)}
        return [Call(tuple(range(len(pictures))), inputs)]

    def processor_kwargs(self, config: Any, picture: Picture, tokens: int) -> Mapping[str, Any]:
        """``max_soft_tokens``: the largest of the known ones that gives at most so many tokens, up to a tenth more.

        The processor makes every picture as large as that number lets it, and rounds down.
        """
        grid = picture.full.grid
        made = {most: shrunk(grid, most / grid.tokens).tokens for most in GEMMA_BUDGETS}
        fitting = [most for most, count in made.items() if count <= 1.1 * tokens]
        return {"max_soft_tokens": fitting[-1] if fitting else GEMMA_BUDGETS[0]}

    def _per_token(self, config: Any) -> int:
        return config.vision_config.pooling_kernel_size if self.pooled else 1

    def _places(self, config: Any, grid: Grid) -> Int[Tensor, "patches 2"]:
        cell = self._per_token(config)
        rows, cols = torch.arange(grid.rows * cell), torch.arange(grid.cols * cell)
        return torch.cartesian_prod(rows, cols).flip(-1)

    def _resized(
        self, stacked: Float[Tensor, "pictures patches numbers"], config: Any, before: Grid, after: Grid
    ) -> Float[Tensor, "pictures new_patches numbers"]:
        if before == after:
            return stacked
        cell = self._per_token(config)
        patch, pattern = math.isqrt(stacked.shape[-1] // 3), "(t gh mh gw mw) (ph pw c tp)"
        grid = (1, before.rows * cell, before.cols * cell)
        whole = pixels.unpatched(stacked, pattern, grid=grid, merge=(cell, cell), patch=patch)[:, 0]
        small = pixels.resampled(whole, (after.rows * cell * patch, after.cols * cell * patch))
        return pixels.patched(small[:, None], pattern, time=1, merge=(cell, cell), patch=patch)

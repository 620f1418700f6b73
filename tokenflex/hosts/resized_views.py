"""Smaller images for hosts that take each image as a view of its own: stacked, padded, or of one fixed size."""

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
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import Modality
from tokenflex.hosts.resizing import Call, Image, Resizing, shared
from tokenflex.ops import pixels

Size = tuple[int, int]


@final
@dataclass(frozen=True)
class Squares(Resizing):
    """Images of one fixed size, for towers whose position embeddings can be interpolated.

    The host's encoder is told to by ``interpolate_pos_encoding``, and called once per size.
    """

    levels: ClassVar[str] = "a smaller square of whole patches, position embeddings interpolated"

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """A square of as many whole patches along a side as its share has."""
        return Image(number=number, full=full, layout=replace(full, grid=shrunk(full.grid, share)))

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call per size, with all images of that size."""
        values, found = batch.inputs[modality.pixels], list[Call]()
        for grid in dict.fromkeys(image.layout.grid for image in images):
            which = tuple(k for k, image in enumerate(images) if image.layout.grid == grid)
            full = images[which[0]].full.grid
            own = values[torch.tensor([images[k].number for k in which]).to(values.device)]
            size = (own.shape[-2] // full.rows * grid.rows, own.shape[-1] // full.cols * grid.cols)
            interpolation = {} if grid == full else {"interpolate_pos_encoding": True}
            inputs = {**shared(modality, batch), **interpolation, modality.pixels: pixels.resampled(own, size)}
            found.append(Call(which, inputs))
        return found


@final
@dataclass(frozen=True)
class Padded(Resizing):
    """Images of any size, stacked and padded below and to the right, with their (height, width) in pixels.

    Attributes:
        sizes: the input of heights and widths.
    """

    levels: ClassVar[str] = "whole tokens in height and width, rounded down"

    sizes: str = "image_sizes"

    @property
    def setting(self) -> str | None:
        """The processor's longest edge of an image, in pixels."""
        return "size"

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """An image of as many whole tokens in height and width as its share has; at full size it keeps every pixel."""
        size, grid = batch.cpu[self.sizes][number], shrunk(full.grid, share)
        if grid != full.grid:
            before, after = (torch.tensor([one.rows, one.cols], dtype=size.dtype) for one in (full.grid, grid))
            size = size // before * after
        return Image(number=number, full=full, layout=replace(full, grid=grid), sizes={self.sizes: size})

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call, its images padded to the largest of those asked for."""
        all_pixels, all_sizes = batch.inputs[modality.pixels], batch.cpu[self.sizes]
        sizes = torch.stack([image.sizes[self.sizes] for image in images])
        before: list[Size] = [tuple(all_sizes[image.number].tolist()) for image in images]
        after: list[Size] = [tuple(size) for size in sizes.tolist()]
        values = [all_pixels[p.number, :, :h, :w] for p, (h, w) in zip(images, before, strict=True)]
        made = pixels.together(
            values, list(zip(before, after, strict=True)), lambda stacked, at: pixels.resampled(stacked, after[at])
        )
        height, width = (max(size[axis] for size in after) for axis in (0, 1))
        stacked = torch.stack([F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in made])
        own = {self.sizes: sizes.to(batch.inputs[self.sizes].device), modality.pixels: stacked}
        return [Call(tuple(range(len(images))), {**shared(modality, batch, self.sizes), **own})]

    def processor_kwargs(self, config: Any, image: Image, tokens: int) -> Mapping[str, Any]:
        """``size``: the longest edge of the largest image of at most so many tokens.

        The processor shrinks an image to that edge and rounds the other one up.
        """
        grid, (height, width) = image.full.grid, image.sizes[self.sizes].tolist()
        longest, other = max(grid.rows, grid.cols), min(grid.rows, grid.cols)
        fitting = [k for k in range(1, longest + 1) if k * math.ceil(k * other / longest) <= tokens]
        return {"size": {"longest_edge": max(height, width) // longest * (fitting[-1] if fitting else 1)}}


GEMMA_BUDGETS = (70, 140, 280, 560, 1120)
"""Tokens per image that Gemma 4's processors know."""


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
        """The processor's number of tokens per image, one of `GEMMA_BUDGETS`."""
        return "max_soft_tokens"

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """An image of as many whole tokens in height and width as its share has."""
        grid = shrunk(full.grid, share)
        image = Image(number=number, full=full, layout=replace(full, grid=grid))
        if grid == full.grid:
            return image
        places = self._places(config, grid)
        fill = batch.cpu[self.places].shape[1] - len(places)
        padded = F.pad(places, (0, 0, 0, fill), value=-1)
        return replace(image, sizes={self.places: padded})

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call, its images padded to the largest of those asked for."""
        all_pixels, own = batch.inputs[modality.pixels], batch.inputs[self.places]
        grids = [image.full.grid for image in images]
        counts = [len(self._places(config, grid)) for grid in grids]
        values = [all_pixels[p.number, :count] for p, count in zip(images, counts, strict=True)]
        kinds = [(image.full.grid, image.layout.grid) for image in images]
        made = pixels.together(values, kinds, lambda stacked, at: self._resized(stacked, config, *kinds[at]))
        places = [self._places(config, image.layout.grid) for image in images]
        most = max(map(len, places))
        if all(image.layout.grid == image.full.grid for image in images):
            most = all_pixels.shape[1]
        stacked = torch.stack([F.pad(one, (0, 0, 0, most - len(one))) for one in made])
        stacked_places = torch.stack([F.pad(one, (0, 0, 0, most - len(one)), value=-1) for one in places])
        inputs = {**shared(modality, batch, self.places), modality.pixels: stacked, self.places: stacked_places.to(own)}
        return [Call(tuple(range(len(images))), inputs)]

    def processor_kwargs(self, config: Any, image: Image, tokens: int) -> Mapping[str, Any]:
        """``max_soft_tokens``: the largest of the known ones that gives at most so many tokens, up to a tenth more.

        The processor makes every image as large as that number lets it, and rounds down.
        """
        grid = image.full.grid
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
        self, stacked: Float[Tensor, "images patches numbers"], config: Any, before: Grid, after: Grid
    ) -> Float[Tensor, "images new_patches numbers"]:
        if before == after:
            return stacked
        cell = self._per_token(config)
        patch, pattern = math.isqrt(stacked.shape[-1] // 3), "(t gh mh gw mw) (ph pw c tp)"
        grid = (1, before.rows * cell, before.cols * cell)
        whole = pixels.unpatched(stacked, pattern, grid=grid, merge=(cell, cell), patch=patch)[:, 0]
        small = pixels.resampled(whole, (after.rows * cell * patch, after.cols * cell * patch))
        return pixels.patched(small[:, None], pattern, time=1, merge=(cell, cell), patch=patch)

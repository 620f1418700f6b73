"""Smaller images for InternVL and its kin: fewer tiles, down to the whole image as the only one.

Their processors fit an image into the canvas of tiles whose shape is closest to its own, and put the whole image, on
one tile, behind it (arXiv 2404.16821). How many tiles stand in a row is told by no input. It is found by comparing the
canvas with the tile of the whole, both made very small: only the right canvas shows the same image.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Grid, HostBatch
from tokenflex.contracts.scaler import SLACK
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import Modality
from tokenflex.hosts.resizing import Call, Image, Resizing, shared
from tokenflex.ops import pixels

LOOK = 24
"""Side of a tile when canvases are compared, in pixels."""


@final
@dataclass(frozen=True)
class Canvas(Resizing):
    """Tiles of all images one behind the other; of each, its canvas row by row, then the whole of it."""

    levels: ClassVar[str] = "fewer tiles, down to the whole image on one"

    whole: ClassVar[bool] = True

    @property
    def setting(self) -> str | None:
        """The processor's number of tiles besides the whole image."""
        return "max_patches"

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """The canvas that the processor chooses among those of at most ``share`` of the tiles."""
        if share == 1 or full.views == 1:
            return Image(number=number, full=full, layout=full)
        most = int(share * (full.views - 1) + SLACK)
        tiles = nearest(self._arranged(modality, batch, number), most).tokens if most > 1 else 1
        return Image(number=number, full=full, layout=replace(full, views=tiles + 1 if tiles > 1 else 1))

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call, with all tiles of the images asked for."""
        own = [self._tiles(modality, batch, image.number) for image in images]
        arranged = [
            self._arranged(modality, batch, p.number) if p.full.views > p.layout.views > 1 else Grid(1, 1)
            for p in images
        ]
        kinds = [(p.full.views, p.layout.views, grid) for p, grid in zip(images, arranged, strict=True)]
        made = pixels.together(own, kinds, lambda stacked, at: _retiled(stacked, *kinds[at]))
        return [Call(tuple(range(len(images))), {**shared(modality, batch), modality.pixels: torch.cat(made)})]

    def processor_kwargs(self, config: Any, image: Image, tokens: int) -> Mapping[str, Any]:
        """``max_patches``: tiles besides the whole image; empty for an image of one tile."""
        if image.full.views == 1:
            return {}
        return {"max_patches": max(min(tokens // image.full.grid.tokens, image.full.views) - 1, 1)}

    def _tiles(self, modality: Modality, batch: HostBatch, number: int) -> Float[Tensor, "tiles channels side side"]:
        views = [item.layout.views for item in batch.items if item.modality is modality]
        starts = [0, *itertools.accumulate(views)]
        return batch.inputs[modality.pixels][starts[number] : starts[number + 1]]

    def _arranged(self, modality: Modality, batch: HostBatch, number: int) -> Grid:
        """Tiles of an image's canvas, down and across; found once per batch."""
        known: dict[int, Grid] = batch.made.setdefault("canvases", {})
        if number not in known:
            known[number] = arrangement(self._tiles(modality, batch, number).detach())
        return known[number]


def arrangement(tiles: Float[Tensor, "tiles channels side side"]) -> Grid:
    """How the tiles but the last, which shows the whole, lie on their canvas: down and across."""
    small = F.adaptive_avg_pool2d(tiles.float(), LOOK)
    count = len(tiles) - 1
    shapes = [Grid(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    if len(shapes) == 1:
        return shapes[0]
    whole = small[-1:]
    off = [
        (F.adaptive_avg_pool2d(pixels.untiled(small[None, :-1], shape.rows), LOOK) - whole).square().mean()
        for shape in shapes
    ]
    return shapes[int(torch.stack(off).argmin())]


def nearest(canvas: Grid, most: int) -> Grid:
    """Tiles, down and across, of the canvas that an image is fitted into which fills ``canvas``.

    That of the nearest shape (width by height), of at most ``most`` tiles. Of equally near ones, the one of more tiles
    as long as it has fewer than twice those of the image.
    """
    shape, best = canvas.cols / canvas.rows, Grid(1, 1)
    off = float("inf")
    sides = range(1, most + 1)
    known = [Grid(rows, cols) for cols in sides for rows in sides if rows * cols <= most]
    for one in sorted(known, key=lambda one: one.tokens):
        its = abs(shape - one.cols / one.rows)
        if its < off or (its == off and one.tokens < 2 * canvas.tokens):
            best, off = one, its
    return best


def _retiled(stacked: Float[Tensor, "images tiles channels side side"], views: int, fewer: int, canvas: Grid) -> Tensor:
    """Fewer tiles of every image, ``(images, fewer, channels, side, side)``; the whole image stays the last one."""
    if fewer == views:
        return stacked
    if fewer == 1:
        return stacked[:, -1:]
    side, tiles = stacked.shape[-1], nearest(canvas, fewer - 1)
    full = pixels.untiled(stacked[:, :-1], canvas.rows)
    small = pixels.resampled(full, (tiles.rows * side, tiles.cols * side))
    return torch.cat([pixels.tiled(small, side), stacked[:, -1:]], dim=1)

"""Smaller images for LLaVA-NeXT and its kin: coarser canvases, down to the whole view alone.

An image keeps the canvas that the host itself would choose for it, were it small enough to fit one of fewer tiles; of
all such canvases the largest one. Where none is small enough, the view of the whole image stays alone: its tokens and
one newline, as the host packs an image of a single view. That view keeps its pixels at every size. Videos, and images
of one view, stay as they are.

`get_image_features` of these hosts asks for two tiles at least, so views are encoded one by one here: by the host's
vision tower and projector, called as `get_image_features` calls them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import HostBatch
from tokenflex.contracts.scaler import SLACK
from tokenflex.hosts import anyres
from tokenflex.hosts.layouts import GridLayout, ImageLayout, TiledLayout
from tokenflex.hosts.modality import Modality
from tokenflex.hosts.resizing import Call, Image, Resizing
from tokenflex.ops import pixels

Size = tuple[int, int]


@final
@dataclass(frozen=True)
class Canvases(Resizing):
    """Tiles of every image, the whole of it first; one tensor for all images of a batch."""

    levels: ClassVar[str] = (
        "coarser canvases, down to the whole view alone; videos, and images that share a row in OneVision, stay"
    )

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """An image on the canvas that `smaller` finds for its share."""
        return Image(number=number, full=full, layout=smaller(config, full, share))

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call: the views of the images, one behind the other, for the tower; or the videos as they are."""
        options = anyres.given(batch.inputs)
        if modality.key == "image":
            values = torch.cat(views(batch, images))
        else:
            chosen = torch.tensor([image.number for image in images])
            values = batch.inputs[modality.pixels]
            values = values[chosen.to(values.device)]
        return [Call(tuple(range(len(images))), {**options, modality.pixels: values})]


def smaller(config: Any, full: ImageLayout, share: float) -> ImageLayout:
    """An image whose canvas has at most ``share`` of its tiles; videos and images of one view stay as they are.

    A canvas of another shape may need more tokens than that of the image, though it has no more tiles; it isn't taken.
    """
    if not isinstance(full, TiledLayout):
        return full
    most = int(share * full.tiles.tokens + SLACK)
    if most >= full.tiles.tokens:
        return full
    found: list[tuple[int, int, TiledLayout]] = []
    for canvas in map(tuple, config.image_grid_pinpoints):
        scale = min(canvas[0] / full.size[0], canvas[1] / full.size[1], 1.0)
        height, width = (max(round(side * scale), 1) for side in full.size)
        tiles = anyres.local_tiles(config, (height, width))
        made = replace(full, tiles=tiles, size=(height, width))
        if tiles.tokens <= most and made.placeholders <= full.placeholders:
            found.append((tiles.tokens, height * width, made))
    return max(found, key=lambda one: one[:2])[2] if found else GridLayout(grid=full.grid, end=1)


def encoded_views(model: Any, inputs: Mapping[str, Any]) -> Float[Tensor, "views tokens dim"]:
    """The tokens of views that are encoded one by one, by the host's vision tower and projector.

    Args:
        inputs: as `Canvases.calls` gives them for images.
    """
    options = {name: inputs.get(name) for name in anyres.ENCODER_OPTIONS}
    layer, strategy = (getattr(model.config, name) if option is None else option for name, option in options.items())
    tower, projector = model.base_model.vision_tower, model.base_model.multi_modal_projector
    hidden = tower(inputs["pixel_values"], output_hidden_states=True, return_dict=True).hidden_states
    tokens = hidden[layer] if isinstance(layer, int) else torch.cat([hidden[one] for one in layer], dim=-1)
    return projector(tokens[:, 1:] if strategy == "default" else tokens)


def views(batch: HostBatch, images: Sequence[Image]) -> list[Float[Tensor, "views channels side side"]]:
    """The pixels of every image's views at its size, the whole image first."""
    kinds = [(image.full, image.layout) for image in images]
    values = [batch.inputs["pixel_values"][image.number][: image.full.views] for image in images]

    def make(stacked: Tensor, at: int) -> Tensor:
        before, after = kinds[at]
        if after == before or not isinstance(before, TiledLayout):
            return stacked
        whole = stacked[:, :1]
        if not isinstance(after, TiledLayout):
            return whole
        side = stacked.shape[-1]
        canvas = pixels.untiled(stacked[:, 1:], before.tiles.rows)
        other = _fitted(canvas, before.size, after.size, (after.tiles.rows * side, after.tiles.cols * side))
        return torch.cat([whole, pixels.tiled(other, side)], dim=1)

    return pixels.together(values, kinds, make)


def _fitted(canvas: Float[Tensor, "n channels height width"], before: Size, after: Size, size: Size) -> Tensor:
    """The image on another canvas.

    The rest of it is black: as it is on the full canvas, or, where nothing of that is black, the image's darkest.

    Args:
        before, after: (height, width) of the image, on the full canvas and on the other one.
        size: of the other canvas.
    """
    full: Size = (canvas.shape[-2], canvas.shape[-1])
    top, left, height, width = _place(before, full)
    image = canvas[..., top : top + height, left : left + width]
    filled = (height, width) == full
    black = image.amin((-2, -1), keepdim=True) if filled else canvas[..., -1:, -1:]
    top, left, height, width = _place(after, size)
    made = black.expand(*image.shape[:2], *size).clone()
    made[..., top : top + height, left : left + width] = pixels.resampled(image, (height, width))
    return made


def _place(image: Size, canvas: Size) -> tuple[int, int, int, int]:
    """(top, left, height, width) of an image in the middle of a canvas that it is fitted into."""
    down, across = canvas[0] / image[0], canvas[1] / image[1]
    if across < down:
        height, width = min(math.ceil(image[0] * across), canvas[0]), canvas[1]
    else:
        height, width = canvas[0], min(math.ceil(image[1] * down), canvas[1])
    return (canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width

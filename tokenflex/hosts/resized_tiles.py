"""Smaller images for LLaVA-NeXT and its kin: coarser canvases, down to the whole view alone.

An image keeps the canvas that the host itself would choose for it, were it small enough to fit one of fewer tiles; of
all such canvases the largest one. Where none is small enough, the view of the whole image stays alone: its tokens and
one newline, as the host packs an image of a single view. That view keeps its pixels at every size.

`get_image_features` of these hosts asks for two tiles at least, so views are encoded one by one here: by the host's
vision tower and projector, called as `get_image_features` calls them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Grid, HostBatch, VisualTokens
from tokenflex.contracts.scaler import SLACK
from tokenflex.hosts import anyres, placeholders
from tokenflex.hosts.anyres import Item
from tokenflex.hosts.refusing import refusing
from tokenflex.hosts.resizing import check_images, check_shares, rewritten
from tokenflex.hosts.runs import PlaceholderRun, Strip, Tiled
from tokenflex.ops import pixels

Size = tuple[int, int]
SERVED = ("llava_next", "llava_next_video", "llava_onevision")
LEVELS = "coarser canvases, down to the whole view alone; videos, and images that share a row in OneVision, stay"
"""For tables."""


def smaller(config: Any, run: PlaceholderRun, share: float) -> PlaceholderRun:
    """An image whose canvas has at most ``share`` of its tiles; videos and images of one view stay as they are."""
    if share == 1 or not isinstance(run, Tiled):
        return run
    most = int(share * run.tiles.tokens + SLACK)
    found: list[tuple[int, int, Size, Grid]] = []
    for canvas in map(tuple, config.image_grid_pinpoints):
        scale = min(canvas[0] / run.size[0], canvas[1] / run.size[1], 1.0)
        height, width = (max(round(side * scale), 1) for side in run.size)
        tiles = anyres.local_tiles(config, (height, width))
        if tiles.tokens <= most:
            found.append((tiles.tokens, height * width, (height, width), tiles))
    if not found:
        return Strip(grid=run.grid, ends=1)
    _, _, size, tiles = max(found, key=lambda one: one[:2])
    return replace(run, tiles=tiles, size=size)


def resized(batch: HostBatch, shares: Sequence[float], *, config: Any, encoder_keys: Sequence[str]) -> HostBatch:
    """As `HostAdapter.resized`.

    Args:
        config: the host's.
        encoder_keys: inputs that hold pixels or tell of them.

    Raises:
        InputError: shares or positions aren't as they should be.
    """
    check_shares(batch, shares)
    if all(share == 1 for share in shares):
        return batch
    made = _stretches(batch, shares, config)
    text = rewritten(batch, [(one.placeholders,) for one in made], anyres.pad_token(config))
    gone = {*encoder_keys, *placeholders.SEQUENCE_KEYS, "input_ids"}
    inputs = {name: value for name, value in batch.inputs.items() if name not in gone} | text.inputs
    cpu = {name: value for name, value in batch.cpu.items() if name not in gone} | text.cpu
    items = [Item(item.key, one, span) for item, one, span in zip(batch.items, made, text.spans, strict=True)]
    return HostBatch(
        inputs, cpu, text.spans, tuple(one.grid for one in made), batch.frames, tuple(items), origin=text.origin
    )


def encode(model: Any, batch: HostBatch, shares: Sequence[float], images: Sequence[int]) -> tuple[VisualTokens, ...]:
    """As `HostAdapter.encode_resized`, in one call of the tower for images and one of the host for videos.

    Raises:
        InputError: shares or numbers of images aren't as they should be.
    """
    check_shares(batch, shares)
    check_images(batch, images)
    made = _stretches(batch, shares, model.config)
    still = [i for i in images if batch.items[i].key == "image"]
    videos = [i for i in images if batch.items[i].key == "video"]
    found: list[VisualTokens] = []
    if still:
        with refusing({"pixel_values": batch.inputs["pixel_values"]}):
            views = _views(model.config, batch, made, still)
            tokens = _encoded(model, torch.cat(views), batch).split([len(one) for one in views])
        found += [VisualTokens(one, made[i].grid, row=batch.spans[i].row) for i, one in zip(still, tokens, strict=True)]
    if videos:
        first = [item.key for item in batch.items].index("video")
        chosen = torch.tensor([i - first for i in videos])
        all_pixels = batch.inputs["pixel_values_videos"]
        inputs = {**batch.inputs, "pixel_values_videos": all_pixels[chosen.to(all_pixels.device)]}
        output = anyres.encoded_videos(model, inputs)
        found += anyres.views([batch.items[i] for i in videos], list(output.pooler_output))
    return tuple(found)


def _stretches(batch: HostBatch, shares: Sequence[float], config: Any) -> list[PlaceholderRun]:
    return [smaller(config, item.run, share) for item, share in zip(batch.items, shares, strict=True)]


def _encoded(model: Any, views: Float[Tensor, "views channels side side"], batch: HostBatch) -> Tensor:
    """``(views, tokens, dim)``."""
    options = {name: batch.inputs.get(name) for name in anyres.ENCODER_OPTIONS}
    layer, strategy = (getattr(model.config, name) if option is None else option for name, option in options.items())
    tower, projector = model.base_model.vision_tower, model.base_model.multi_modal_projector
    hidden = tower(views, output_hidden_states=True, return_dict=True).hidden_states
    tokens = hidden[layer] if isinstance(layer, int) else torch.cat([hidden[one] for one in layer], dim=-1)
    return projector(tokens[:, 1:] if strategy == "default" else tokens)


@dataclass(frozen=True)
class _Kind:
    """What images must have in common to be made at once."""

    before: PlaceholderRun
    after: PlaceholderRun


def _views(config: Any, batch: HostBatch, made: Sequence[PlaceholderRun], images: Sequence[int]) -> list[Tensor]:
    """Per image ``(views, channels, side, side)``, the whole image first."""
    kinds = [_Kind(batch.items[i].run, made[i]) for i in images]
    counts = [1 + kind.before.tiles.tokens if isinstance(kind.before, Tiled) else 1 for kind in kinds]
    values = [batch.inputs["pixel_values"][i][:count] for i, count in zip(images, counts, strict=True)]

    def make(stacked: Tensor, at: int) -> Tensor:
        before, after = kinds[at].before, kinds[at].after
        if after == before or not isinstance(before, Tiled):
            return stacked
        whole = stacked[:, :1]
        if not isinstance(after, Tiled):
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

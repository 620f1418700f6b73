"""What LLaVA-NeXT and its kin share: reading tiles and clips from the host, and shortening the text around them.

The hosts pack and unpad what their vision tower saw before they hand it out. Tiles are read back from there by asking
for pictures that fill their canvas exactly (`encoded_pictures`): nothing is cut off then, and undoing the packing is
a matter of shape. Only the host's public ``get_image_features`` is called, so what its tower and projector do stays
its own business, and the tower runs once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tokenflex.contracts import Grid, HostInputs, PaddingSide, VisualTokens
from tokenflex.errors import InputError
from tokenflex.hosts import placeholders
from tokenflex.hosts.placeholders import Plan, Span
from tokenflex.hosts.stretches import Stretch, Strip
from tokenflex.hosts.tower_attention import attending

PICTURE_KEYS = ("pixel_values", "image_sizes")
CLIP_KEYS = ("pixel_values_videos",)
TOWER = ("model.vision_tower",)
ENCODER_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")


@dataclass(frozen=True)
class Item:
    """One picture or clip of a batch, and where it stands.

    Attributes:
        key: its modality's name in ``mm_encoder_outputs``.
    """

    key: str
    stretch: Stretch
    span: Span


def square(config: Any) -> Grid:
    """Patches of one tile."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return Grid(side, side)


def canvas_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of the canvas that a picture of (height, width) pixels is fitted into."""
    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    return height, width


def local_tiles(config: Any, size: tuple[int, int]) -> Grid:
    """Local tiles, down and across, of a picture of (height, width) pixels."""
    side = config.vision_config.image_size
    height, width = canvas_size(config, size)
    return Grid(height // side, width // side)


def encoded_pictures(model: Any, inputs: HostInputs, **options: Any) -> Any:
    """The host's output for the batch's pictures, packed as if none of them needed unpadding."""
    pixels = inputs["pixel_values"]
    canvases = [canvas_size(model.config, size) for size in image_sizes(inputs)]
    sizes = torch.tensor(canvases, device=pixels.device)
    return model.get_image_features(pixels, sizes, return_dict=True, **_given(inputs), **options)


def encoded_clips(model: Any, inputs: HostInputs, **options: Any) -> Any:
    """The host's output for the batch's clips, packed ``(clips, packed, dim)``."""
    pixels = inputs["pixel_values_videos"]
    return model.get_video_features(pixels, return_dict=True, **_given(inputs), **options)


def encoded(
    model: Any, inputs: HostInputs, items: Sequence[Item], attention: bool, **options: Any
) -> tuple[VisualTokens, ...]:
    """Everything a batch shows, pictures first.

    Args:
        attention: also read attention and keys off the tower.
        options: for pictures only.
    """
    found: list[VisualTokens] = []
    asked = {"output_hidden_states": True} if attention else {}
    for key in ("image", "video"):
        mine = [item for item in items if item.key == key]
        if not mine:
            continue
        pictures = key == "image"
        output = (
            encoded_pictures(model, inputs, **options, **asked) if pictures else encoded_clips(model, inputs, **asked)
        )
        images = read(mine, list(output.pooler_output))
        found += attending(images, model, TOWER, output.hidden_states, inputs) if attention else images
    return tuple(found)


def _given(inputs: HostInputs) -> dict[str, Any]:
    return {key: inputs[key] for key in ENCODER_OPTIONS if inputs.get(key) is not None}


def image_sizes(inputs: HostInputs) -> list[tuple[int, int]]:
    """(height, width) in pixels of every picture; empty without pictures.

    Raises:
        InputError: there are more or fewer sizes than pictures.
    """
    pixels, sizes = inputs.get("pixel_values"), inputs.get("image_sizes")
    if pixels is None:
        return []
    if sizes is None or len(sizes) != len(pixels):
        raise InputError(
            f"pixel_values holds {len(pixels)} images, image_sizes "
            f"{'is missing' if sizes is None else f'holds {len(sizes)}'}; pass both as the processor made them."
        )
    return [(int(height), int(width)) for height, width in sizes]


def clips(inputs: HostInputs, grid: Grid, ends: int) -> list[Strip]:
    """The batch's clips.

    Args:
        grid: tokens of one frame.
        ends: newlines behind a clip.

    Raises:
        InputError: the clips aren't stacked.
    """
    pixels = inputs.get("pixel_values_videos")
    if pixels is None:
        return []
    if pixels.dim() != 5:
        raise InputError(
            f"pixel_values_videos has {pixels.dim()} axes; the host takes 5: clips, frames, channels, height, width. "
            "Pass it as the processor made it."
        )
    return [Strip(grid=grid, views=pixels.shape[1], ends=ends, clip=True) for _ in pixels]


def located(inputs: HostInputs, seen: Mapping[str, Sequence[Stretch]], tokens: Mapping[str, int]) -> list[Item]:
    """Every picture and clip with its place, modality by modality.

    Args:
        seen: per modality what the batch holds.
        tokens: per modality the placeholder's id.

    Raises:
        InputError: placeholders don't match what is to be seen.
    """
    items: list[Item] = []
    for key, stretches in seen.items():
        spans = placeholders.locate(inputs["input_ids"] == tokens[key], [s.placeholders for s in stretches])
        items += [Item(key, stretch, span) for stretch, span in zip(stretches, spans, strict=True)]
    return items


def read(items: Sequence[Item], packed: Sequence[Tensor]) -> list[VisualTokens]:
    """The views of every item from what the host packed."""
    return [
        VisualTokens(item.stretch.unpack(features), item.stretch.grid, row=item.span.row, clip=item.stretch.frames > 0)
        for item, features in zip(items, packed, strict=True)
    ]


def counts(
    items: Sequence[Item], kept: Sequence[Sequence[Grid | int]], frames: Sequence[Sequence[int] | None] | None
) -> Tensor:
    """``(images, levels)``, tokens of every item at every level; arguments as in `HostAdapter.count`."""
    merged = [None] * len(items) if frames is None else frames
    rows = [
        [item.stretch.count(k, n) for k, n in zip(levels, each or [None] * len(levels), strict=True)]
        for item, levels, each in zip(items, kept, merged, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.long)


def shortened(
    inputs: HostInputs,
    items: Sequence[Item],
    kept: Sequence[int],
    side: PaddingSide | None,
    *,
    config: Any,
    encoder_keys: Sequence[str],
) -> tuple[dict[str, Any], Plan]:
    """The batch without its encoder's inputs, its text with ``kept`` placeholders per item.

    Args:
        side: where rows are padded; None keeps the side the batch has.
        config: the host's.
        encoder_keys: inputs that the encoder has seen, besides its options.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    plan = placeholders.plan(ids, mask, [item.span for item in items], [(count,) for count in kept], side)
    dropped = {*encoder_keys, *ENCODER_OPTIONS, *placeholders.SEQUENCE_KEYS, "input_ids"}
    out = {key: value for key, value in inputs.items() if key not in dropped}
    return out | placeholders.apply(plan, inputs, pad_token(config)), plan


def pad_token(config: Any) -> int:
    """The id padding is written as, never a placeholder's."""
    taken = {getattr(config, name, None) for name in ("image_token_id", "video_token_id")}
    found = getattr(config, "pad_token_id", None)
    found = found if found is not None else getattr(config.text_config, "pad_token_id", None)
    return found if found is not None and found not in taken else 0

"""What LLaVA-NeXT and its kin share: reading tiles and videos from the host, and shortening the text around them.

The hosts pack and unpad what their vision tower saw before they hand it out. Tiles are read back from there by asking
for images that fill their canvas exactly (`encoded_images`): nothing is cut off then, and undoing the packing is
a matter of shape. Only the host's public ``get_image_features`` is called, so what its tower and projector do stays
its own business, and the tower runs once.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tokenflex.contracts import Grid, HostBatch, HostInputs, PaddingSide, ScaledTokens, Span, VisualTokens
from tokenflex.errors import InputError
from tokenflex.hosts import placeholders
from tokenflex.hosts.encoded import layout_of
from tokenflex.hosts.placeholders import Shortening
from tokenflex.hosts.refusing import refusing, sized
from tokenflex.hosts.runs import PlaceholderRun, Strip, packed
from tokenflex.hosts.tower_attention import attending

IMAGE_KEYS = ("pixel_values", "image_sizes")
VIDEO_KEYS = ("pixel_values_videos",)
TOWER = ("model.vision_tower",)
ENCODER_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")


@dataclass(frozen=True)
class Item:
    """One image or video of a batch, and where it stands.

    Attributes:
        key: its modality's name in ``mm_encoder_outputs``.
    """

    key: str
    run: PlaceholderRun
    span: Span


def square(config: Any) -> Grid:
    """Patches of one tile."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return Grid(side, side)


def canvas_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of the canvas that an image of (height, width) pixels is fitted into."""
    return _canvas(size, tuple((height, width) for height, width in config.image_grid_pinpoints))


@functools.lru_cache(maxsize=4096)
def _canvas(size: tuple[int, int], known: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    height, width = select_best_resolution(size, list(known))
    return height, width


def local_tiles(config: Any, size: tuple[int, int]) -> Grid:
    """Local tiles, down and across, of an image of (height, width) pixels."""
    side = config.vision_config.image_size
    height, width = canvas_size(config, size)
    return Grid(height // side, width // side)


def encoded_images(model: Any, batch: HostBatch, **options: Any) -> Any:
    """The host's output for the batch's images, packed as if none of them needed unpadding.

    The host reads the sizes number by number, so they are given on the CPU.
    """
    sizes = torch.tensor([canvas_size(model.config, size) for size in image_sizes(batch.inputs, batch.cpu)])
    pixels = batch.inputs["pixel_values"]
    with refusing({"pixel_values": pixels, "image_sizes": batch.inputs.get("image_sizes")}):
        return model.get_image_features(pixels, sizes, return_dict=True, **_given(batch.inputs), **options)


def encoded_videos(model: Any, inputs: HostInputs, **options: Any) -> Any:
    """The host's output for the batch's videos, packed ``(videos, packed, dim)``."""
    pixels = inputs["pixel_values_videos"]
    with refusing({"pixel_values_videos": pixels}):
        return model.get_video_features(pixels, return_dict=True, **_given(inputs), **options)


def encoded(model: Any, batch: HostBatch, attention: bool, **options: Any) -> tuple[VisualTokens, ...]:
    """Everything a batch shows, images first.

    Args:
        attention: also read attention and keys off the tower.
        options: for images only.
    """
    found: list[VisualTokens] = []
    asked = {"output_hidden_states": True} if attention else {}
    for key in ("image", "video"):
        own: list[Item] = [item for item in batch.items if item.key == key]
        if not own:
            continue
        inputs = batch.inputs
        output = (
            encoded_images(model, batch, **options, **asked)
            if key == "image"
            else encoded_videos(model, inputs, **asked)
        )
        images = views(own, list(output.pooler_output))
        found += attending(images, model, TOWER, output.hidden_states, inputs) if attention else images
    return tuple(found)


def _given(inputs: HostInputs) -> dict[str, Any]:
    return {key: inputs[key] for key in ENCODER_OPTIONS if inputs.get(key) is not None}


def image_sizes(inputs: HostInputs, cpu: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(height, width) in pixels of every image; empty without images.

    Args:
        cpu: ``image_sizes`` on the CPU, where it is a tensor.

    Raises:
        InputError: there are more or fewer sizes than images, or a size is none.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return []
    if not isinstance(pixels, Tensor):
        raise InputError(f"pixel_values is a {type(pixels).__name__}; expected a tensor, as the processor made it.")
    sizes = sized(inputs, cpu, ("image_sizes",))["image_sizes"]
    if len(sizes) != len(pixels):
        raise InputError(
            f"pixel_values holds {len(pixels)} images, image_sizes holds {len(sizes)}; pass both as the processor made "
            "them."
        )
    return [(height, width) for height, width in sizes.tolist()]


def videos(inputs: HostInputs, grid: Grid, ends: int) -> list[Strip]:
    """The batch's videos.

    Args:
        grid: tokens of one frame.
        ends: newlines behind a video.

    Raises:
        InputError: the videos aren't stacked.
    """
    pixels = inputs.get("pixel_values_videos")
    if pixels is None:
        return []
    axes = pixels.dim() if isinstance(pixels, Tensor) else None
    if axes != 5:
        raise InputError(
            f"pixel_values_videos {f'has {axes} axes' if axes is not None else f'is a {type(pixels).__name__}'}; the "
            "host takes a tensor of 5: videos, frames, channels, height, width. Pass it as the processor made it."
        )
    return [Strip(grid=grid, views=pixels.shape[1], ends=ends, video=True) for _ in pixels]


def read(
    inputs: HostInputs,
    cpu: Mapping[str, Tensor],
    seen: Mapping[str, Sequence[PlaceholderRun]],
    tokens: Mapping[str, int],
) -> HostBatch:
    """The batch with every image and video in its place, modality by modality.

    Args:
        cpu: of the batch.
        seen: per modality what the batch holds.
        tokens: per modality the placeholder's id.

    Raises:
        InputError: placeholders don't match what is to be seen.
    """
    ids, items = cpu["input_ids"].numpy(), list[Item]()
    for key, runs in seen.items():
        spans = placeholders.locate(ids == tokens[key], [s.placeholders for s in runs])
        items += [Item(key, run, span) for run, span in zip(runs, spans, strict=True)]
    return HostBatch(
        inputs,
        cpu,
        tuple(item.span for item in items),
        tuple(item.run.grid for item in items),
        tuple(item.run.frames for item in items),
        tuple(items),
    )


def views(items: Sequence[Item], packed: Sequence[Tensor]) -> list[VisualTokens]:
    """The views of every item from what the host packed."""
    return [
        VisualTokens(item.run.unpack(features), item.run.grid, row=item.span.row, video=item.run.frames > 0)
        for item, features in zip(items, packed, strict=True)
    ]


def counts(
    batch: HostBatch, kept: Sequence[Sequence[Grid | int]], frames: Sequence[Sequence[int] | None] | None
) -> Tensor:
    """``(images, levels)``, tokens of every item at every level; arguments as in `HostAdapter.count`."""
    merged = [None] * len(batch.items) if frames is None else frames
    rows = [
        [item.run.count(k, n) for k, n in zip(levels, each or [None] * len(levels), strict=True)]
        for item, levels, each in zip(batch.items, kept, merged, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.long)


@dataclass(frozen=True)
class Shortened:
    """A batch's text, or that of some rows, with fewer placeholders.

    Attributes:
        inputs: for the host, without its encoder's.
        plan: what became of its positions.
        chosen: numbers of the images that stand in these rows, in batch order.
        kept: placeholders of each of them.
    """

    inputs: dict[str, Any]
    plan: Shortening
    chosen: list[int]
    kept: list[int]


def shortened(
    batch: HostBatch,
    scaled: Sequence[ScaledTokens],
    side: PaddingSide | None,
    rows: Sequence[int] | None,
    *,
    config: Any,
    encoder_keys: Sequence[str],
) -> Shortened:
    """The batch without its encoder's inputs, its text with as many placeholders per image as tokens were kept.

    Args:
        scaled: of the whole batch.
        side: where rows are padded; None keeps the side the batch has.
        rows: of the batch; None: all.
        config: the host's.
        encoder_keys: inputs that the encoder has seen, besides its options.
    """
    kept = [
        item.run.count(layout_of(each), each.features.shape[0] if item.run.frames else None)
        for item, each in zip(batch.items, scaled, strict=True)
    ]
    plan = placeholders.plan(batch, [(count,) for count in kept], side, rows)
    dropped = {*encoder_keys, *ENCODER_OPTIONS, *placeholders.SEQUENCE_KEYS, "input_ids"}
    out = {key: value for key, value in batch.inputs.items() if key not in dropped}
    out |= placeholders.apply(plan, batch, pad_token(config))
    chosen = placeholders.standing_in(batch, rows)
    return Shortened(out, plan, chosen, [kept[i] for i in chosen])


def gathered(
    batch: HostBatch,
    chosen: Sequence[int],
    features: Sequence[Tensor],
    scaled: Sequence[ScaledTokens],
    newline: Tensor,
) -> list[Tensor]:
    """The chosen images' kept tokens in the host's order, newlines in place.

    Args:
        chosen: numbers of images.
        features: of each of them, ``(views, kept, dim)``.
        scaled: of the whole batch.
    """
    runs = [batch.items[i].run for i in chosen]
    return packed(runs, features, [layout_of(scaled[i]) for i in chosen], newline)


def pad_token(config: Any) -> int:
    """The id padding is written as, never a placeholder's."""
    taken = {getattr(config, name, None) for name in ("image_token_id", "video_token_id")}
    found = getattr(config, "pad_token_id", None)
    found = found if found is not None else getattr(config.text_config, "pad_token_id", None)
    return found if found is not None and found not in taken else 0

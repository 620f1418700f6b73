"""Images and videos cut into patches in a row, with their grids in an input of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflex.testing.zoo.recipe import BOS, END, EOS, IMAGE, PAD, START, VIDEO, VOCABULARY, WORD, Images, pixels

GRIDS = ((4, 4), (4, 6), (6, 2), (5, 3))
VIDEOS = ((2, 4, 4), (3, 2, 6), (1, 5, 3))
"""Tokens in height and width (and, first, in time) that stand for image or video number 0, 1, ..., then again."""

Rows = Sequence[Sequence[int]]
SMALL_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.2,
}  # fmt: skip
IDS: dict[str, Any] = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
}  # fmt: skip


def in_order(rows: Rows) -> list[int]:
    """The numbers of a batch's images, row after row."""
    return [number for row in rows for number in row]


def grid(number: int) -> tuple[int, int]:
    """Tokens in height and width of image ``number``."""
    return GRIDS[number % len(GRIDS)]


def video_grid(number: int) -> tuple[int, int, int]:
    """Tokens in time, height and width of video ``number``."""
    return VIDEOS[number % len(VIDEOS)]


def patch_width(vision: Any) -> int:
    """Numbers in one patch: channels x frames x height x width."""
    return getattr(vision, "in_channels", 3) * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2


def patches(grids: Sequence[tuple[int, int, int]], seeds: Sequence[int], merge: int, width: int) -> dict[str, Tensor]:
    """Patches of all grids in a row, ``merge`` x ``merge`` of them to a token, and the grids they lie on."""
    thw = torch.tensor([(t, h * merge, w * merge) for t, h, w in grids])
    counts = thw.prod(-1).tolist()
    values = torch.cat([pixels(seed, count, width) for seed, count in zip(seeds, counts, strict=True)])
    return {"values": values, "grid_thw": thw}


def wrapped(*inside: int) -> tuple[int, ...]:
    """Placeholders between the ids that open and close an image."""
    return (START, *inside, END)


def grid_images(config: Any, rows: Rows, *, frame: Callable[..., tuple[int, ...]] = wrapped) -> Images:
    """The processor's inputs for images, as ``pixel_values`` and ``image_grid_thw``."""
    numbers, vision = in_order(rows), config.vision_config
    made = patches([(1, *grid(n)) for n in numbers], numbers, vision.spatial_merge_size, patch_width(vision))
    runs = tuple(frame(*(IMAGE,) * (grid(n)[0] * grid(n)[1])) for n in numbers)
    return Images({"pixel_values": made["values"], "image_grid_thw": made["grid_thw"]}, runs)


def grid_videos(config: Any, rows: Rows) -> Images:
    """Videos as ``pixel_values_videos`` and ``video_grid_thw``, each one run of placeholders."""
    numbers = in_order(rows)
    runs = tuple(wrapped(*(VIDEO,) * _size(video_grid(n))) for n in numbers)
    return Images(_videos(config, numbers), runs)


def timed_videos(config: Any, rows: Rows, *, placeholder: int = VIDEO) -> Images:
    """Videos as ``pixel_values_videos`` and ``video_grid_thw``, one run of placeholders per frame, each with a time."""
    numbers = in_order(rows)
    runs: list[tuple[int, ...]] = []
    for t, h, w in map(video_grid, numbers):
        frames = [(WORD + at, START, *(placeholder,) * (h * w), END) for at in range(t)]
        runs.append(tuple(token for frame in frames for token in frame))
    return Images(_videos(config, numbers), tuple(runs))


def _videos(config: Any, numbers: Sequence[int]) -> dict[str, Tensor]:
    vision, seeds = config.vision_config, [1000 + number for number in numbers]
    made = patches([video_grid(n) for n in numbers], seeds, vision.spatial_merge_size, patch_width(vision))
    return {"pixel_values_videos": made["values"], "video_grid_thw": made["grid_thw"]}


def _size(thw: tuple[int, int, int]) -> int:
    return thw[0] * thw[1] * thw[2]

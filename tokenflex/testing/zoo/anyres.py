"""Tiny hosts that cut an image into tiles, unpad the joined grid and end its rows with a learned newline."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tokenflex.testing.zoo.llava import SIDE, clip, language_config, llama, siglip
from tokenflex.testing.zoo.recipe import IMAGE, VIDEO, Images, TinyHost, pixels, seeded

PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
SIZES = ((29, 20), (13, 40), (32, 32), (44, 21), (8, 47), (22, 31), (16, 32))
"""Height and width of image n modulo their number: portrait, wide, square, tall; most of them get padded."""

FRAMES = 3
"""Frames of every video."""


def _settings(**settings: Any) -> dict[str, Any]:
    shared = {"image_token_index": IMAGE, "image_grid_pinpoints": PINPOINTS, "text_config": llama()}
    return shared | {"vision_config": clip()} | settings


def _llava_next() -> Any:
    return seeded(lambda: transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(**_settings())))


def _llava_next_video() -> Any:
    config = transformers.LlavaNextVideoConfig(**_settings(video_token_index=VIDEO))
    return seeded(lambda: transformers.LlavaNextVideoForConditionalGeneration(config))


def _onevision() -> Any:
    """At most two tiles' worth of tokens: larger grids are shrunk bilinearly."""
    settings = {"vision_aspect_ratio": "anyres_max_2", "video_token_index": VIDEO, "vision_config": siglip()}
    config = transformers.LlavaOnevisionConfig(
        **_settings(text_config=language_config(transformers.Qwen2Config), **settings)
    )
    return seeded(lambda: transformers.LlavaOnevisionForConditionalGeneration(config))


def _granite() -> Any:
    """A learned query per two by two patches; two features per image join at the first layers, two later."""
    reader: dict[str, Any] = {
        "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
        "cross_attention_frequency": 1, "use_qformer_text_input": False, "initializer_range": 0.2,
    }  # fmt: skip
    levels: dict[str, Any] = {"deepstack_layer_map": [(-3, 0), (-1, 1)], "spatial_target_layers": [2, 3]}
    text = llama(num_hidden_layers=4).to_dict() | {"model_type": "granite4_vision_text"}
    vision = clip(hidden_size=64, patch_size=SIDE // 8)
    settings = _settings(text_config=text, vision_config=vision, downsample_rate="1/2", qformer_config=reader, **levels)
    return seeded(
        lambda: transformers.Granite4VisionForConditionalGeneration(transformers.Granite4VisionConfig(**settings))
    )


def anyres(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """A base tile and the tiles of the best fitting canvas, for every image."""
    numbers = [number for row in rows for number in row]
    sizes = [SIZES[number % len(SIZES)] for number in numbers]
    tiles = [_tiles(config, number, size) for number, size in zip(numbers, sizes, strict=True)]
    runs = tuple((IMAGE,) * tokens(config, *size) for size in sizes)
    return Images({"pixel_values": _stack(tiles), "image_sizes": torch.tensor(sizes)}, runs)


def anyres_if_alone(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """As `anyres`, but images that share a row are one tile each: OneVision's rule."""
    sizes: list[tuple[int, int]] = []
    tiles: list[Tensor] = []
    runs: list[tuple[int, ...]] = []
    for row in rows:
        for number in row:
            size = SIZES[number % len(SIZES)]
            sizes.append(size)
            tiles.append(_tiles(config, number, size) if len(row) == 1 else pixels(number, 1, 3, SIDE, SIDE))
            runs.append((IMAGE,) * (tokens(config, *size) if len(row) == 1 else tile_side(config) ** 2 + 1))
    counts = torch.tensor([len(row) for row in rows if row])
    inputs = {"pixel_values": _stack(tiles), "image_sizes": torch.tensor(sizes), "batch_num_images": counts}
    return Images(inputs, tuple(runs))


def pooled_videos(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Videos of `FRAMES` frames, each pooled by two in both directions; OneVision ends a video with a newline."""
    numbers = [number for row in rows for number in row]
    stacked = torch.stack([pixels(number + 2000, FRAMES, 3, SIDE, SIDE) for number in numbers])
    onevision = hasattr(config, "vision_aspect_ratio")
    run = (VIDEO,) * (FRAMES * math.ceil(tile_side(config) / 2) ** 2 + onevision)
    return Images({"pixel_values_videos": stacked}, (run,) * len(numbers))


def tile_side(config: Any) -> int:
    """Tokens along the side of one tile."""
    rate = Fraction(getattr(config, "downsample_rate", None) or 1)
    return int(config.vision_config.image_size // config.vision_config.patch_size * rate)


def canvas(config: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens that remain of the canvas after unpadding."""
    best = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = (side // config.vision_config.image_size * tile_side(config) for side in best)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    most = getattr(config, "vision_aspect_ratio", None)
    if most:
        ratio = math.sqrt(rows * columns / (int(most.removeprefix("anyres_max_")) * tile_side(config) ** 2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns


def tokens(config: Any, height: int, width: int) -> int:
    """Placeholders of one image: base tile, canvas, one newline per row."""
    rows, columns = canvas(config, height, width)
    return tile_side(config) ** 2 + rows * (columns + 1)


def _tiles(config: Any, number: int, size: tuple[int, int]) -> Tensor:
    """The base tile, then the canvas row by row: noise in the middle, zeros where it is padded."""
    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    scale = min(height / size[0], width / size[1])
    inner = min(math.ceil(size[0] * scale), height), min(math.ceil(size[1] * scale), width)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded = torch.zeros(3, height, width)
    padded[:, top : top + inner[0], left : left + inner[1]] = pixels(number, 3, *inner)
    cut = padded.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)
    return torch.cat([pixels(number + 1000, 1, 3, SIDE, SIDE), cut])


def _stack(tiles: Sequence[Tensor]) -> Tensor:
    stacked = torch.zeros(len(tiles), max(map(len, tiles)), *tiles[0].shape[1:])
    for i, image in enumerate(tiles):
        stacked[i, : len(image)] = image
    return stacked


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("llava_next", _llava_next, anyres),
    TinyHost("llava_next_video", _llava_next_video, anyres, videos=pooled_videos),
    TinyHost("llava_onevision", _onevision, anyres_if_alone, videos=pooled_videos),
    TinyHost("granite4_vision", _granite, anyres),
)

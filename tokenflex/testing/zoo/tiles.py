"""Tiny hosts that see an image as square tiles, each a unit of its own; marks around or between tiles are words."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.llava import SIDE, language_config, siglip
from tokenflex.testing.zoo.recipe import (
    BREAK,
    END,
    GLOBAL,
    IMAGE,
    ROW,
    START,
    WORD,
    Images,
    TinyHost,
    pixels,
    seeded,
)

GRID = 4
"""Tokens along the side of a tile, for all hosts here."""
TILES = (1, 3, 2, 5)
"""Tiles of image n modulo their number, the overview included, which comes last."""


def _shuffled_tower() -> Any:
    """Twice as many patches per side as tokens: what a pixel shuffle by two halves."""
    return siglip(patch_size=SIDE // (2 * GRID))


def _cohere() -> Any:
    return language_config(transformers.Cohere2Config, sliding_window=1024, head_dim=8)


def _aya() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE, "downsample_factor": 2}
    config = transformers.AyaVisionConfig(text_config=_cohere(), vision_config=_shuffled_tower(), **settings)
    return seeded(lambda: transformers.AyaVisionForConditionalGeneration(config))


def _cohere2_vision() -> Any:
    settings: dict[str, Any] = {"image_token_id": IMAGE, "downsample_factor": 2, "alignment_intermediate_size": 64}
    config = transformers.Cohere2VisionConfig(text_config=_cohere(), vision_config=_shuffled_tower(), **settings)
    return seeded(lambda: transformers.Cohere2VisionForConditionalGeneration(config))


def _vision(**settings: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "initializer_range": 0.2, "layer_scale_init_value": 1.0,
        "image_size": [SIDE, SIDE], "patch_size": [SIDE // (2 * GRID), SIDE // (2 * GRID)],
    }  # fmt: skip
    return sizes | settings


def _internvl() -> Any:
    settings: dict[str, Any] = {"image_token_id": IMAGE, "vision_config": _vision(), "tie_word_embeddings": False}
    config = transformers.InternVLConfig(text_config=language_config(transformers.Qwen2Config), **settings)
    return seeded(lambda: transformers.InternVLForConditionalGeneration(config))


def _qianfan() -> Any:
    settings: dict[str, Any] = {"image_token_id": IMAGE, "vision_config": _vision()}
    config = transformers.QianfanOCRConfig(
        text_config=language_config(transformers.Qwen3Config, head_dim=8), **settings
    )
    return seeded(lambda: transformers.QianfanOCRForConditionalGeneration(config))


def _got_ocr2(kind: Any = transformers.GotOcr2Config) -> Any:
    """Two strided convolutions quarter the grid of the tower."""
    vision: dict[str, Any] = {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32,
        "image_size": 2 * SIDE, "patch_size": 2 * SIDE // (4 * GRID), "window_size": 6, "global_attn_indexes": [1],
        "initializer_range": 0.2,
    }  # fmt: skip
    settings: dict[str, Any] = {"image_token_index": IMAGE, "vision_config": vision}
    config = kind(text_config=language_config(transformers.Qwen2Config), tie_word_embeddings=False, **settings)
    return seeded(lambda: transformers.GotOcr2ForConditionalGeneration(config))


def tiled(write: Callable[[int], tuple[int, ...]], side: int = SIDE) -> Callable[..., Images]:
    """Images of one to five tiles.

    Args:
        write: the token ids of an image of so many tiles.
        side: pixels along the side of a tile.
    """

    def images(config: Any, rows: Sequence[Sequence[int]]) -> Images:
        numbers = [number for row in rows for number in row]
        counts = [TILES[number % len(TILES)] for number in numbers]
        tiles: list[Tensor] = [pixels(n, count, 3, side, side) for n, count in zip(numbers, counts, strict=True)]
        return Images({"pixel_values": torch.cat(tiles)}, tuple(write(count) for count in counts))

    return images


PLACEHOLDERS = (IMAGE,) * GRID**2


def in_brackets(tiles: int) -> tuple[int, ...]:
    """All tiles in one run between a start and an end."""
    return (START, *PLACEHOLDERS * tiles, END)


def numbered(tiles: int) -> tuple[int, ...]:
    """A name before every tile: its number, or that it is the overview."""
    named = [(ROW, WORD + i, *PLACEHOLDERS) for i in range(1, tiles)] + [(GLOBAL, *PLACEHOLDERS)]
    return (START, *(token for tile in named for token in tile), END)


def broken(tiles: int) -> tuple[int, ...]:
    """A line break after every tile."""
    return (START, *(*PLACEHOLDERS, BREAK) * tiles, END)


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("aya_vision", _aya, tiled(numbered)),
    TinyHost("cohere2_vision", _cohere2_vision, tiled(broken)),
    TinyHost("internvl", _internvl, tiled(in_brackets)),
    TinyHost("qianfan_ocr", _qianfan, tiled(in_brackets)),
    TinyHost("got_ocr2", _got_ocr2, tiled(in_brackets, 2 * SIDE)),
    TinyHost("pp_chart2table", lambda: _got_ocr2(transformers.PPChart2TableConfig), tiled(in_brackets, 2 * SIDE)),
)

"""Tiny hosts that write marks for rows and columns between the square tiles of an image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.llava import SIDE, language_config, llama
from tokenflex.testing.zoo.recipe import (
    BREAK,
    COLUMN,
    END,
    GLOBAL,
    IMAGE,
    ROW,
    START,
    Images,
    TinyHost,
    pixels,
    seeded,
)

SQUARE = (IMAGE,) * 16
SHAPES = ((1, 1), (1, 2), (2, 2), (2, 1))
"""Rows and columns of tiles of image n modulo their number; a single tile is only the overview."""


def _tower(**settings: Any) -> dict[str, Any]:
    """Eight patches per side, which all hosts here merge to four tokens."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": SIDE // 8, "initializer_range": 0.2,
    }  # fmt: skip
    return sizes | settings


def _idefics3() -> Any:
    settings: dict[str, Any] = {"vision_config": _tower(), "image_token_id": IMAGE, "scale_factor": 2}
    config = transformers.Idefics3Config(text_config=llama(), **settings)
    return seeded(lambda: transformers.Idefics3ForConditionalGeneration(config))


def _idefics2() -> Any:
    """Sixteen learned queries read every view."""
    reader = {
        "hidden_size": 32, "resampler_n_latents": len(SQUARE), "resampler_depth": 1, "resampler_n_heads": 4,
        "resampler_head_dim": 8, "num_key_value_heads": 2, "initializer_range": 0.2,
    }  # fmt: skip
    settings: dict[str, Any] = {"vision_config": _tower(), "perceiver_config": reader, "image_token_id": IMAGE}
    config = transformers.Idefics2Config(text_config=llama(), **settings)
    return seeded(lambda: transformers.Idefics2ForConditionalGeneration(config))


def _smolvlm() -> Any:
    settings: dict[str, Any] = {"vision_config": _tower(), "image_token_id": IMAGE, "scale_factor": 2}
    config = transformers.SmolVLMConfig(text_config=llama(), **settings)
    return seeded(lambda: transformers.SmolVLMForConditionalGeneration(config))


def _ovis2() -> Any:
    """Tokens are mixtures of 59 visual words; the last five stand for the marks."""
    special: dict[str, Any] = {"visual_indicator_token_ids": [START, GLOBAL, COLUMN, ROW, END], "image_token_id": IMAGE}
    tower = _tower(vocab_size=64, hidden_stride=2, num_visual_indicator_tokens=5)
    config = transformers.Ovis2Config(
        text_config=language_config(transformers.Qwen2Config),
        vision_config=tower,
        hidden_size=32,
        vocab_size=64,
        **special,
    )
    return seeded(lambda: transformers.Ovis2ForConditionalGeneration(config))


def _shape(number: int) -> tuple[int, int]:
    return SHAPES[number % len(SHAPES)]


def _views(number: int) -> Tensor:
    """The overview and, if there is more than one tile, the tiles."""
    rows, columns = _shape(number)
    return pixels(number, 1 + (rows * columns if rows * columns > 1 else 0), 3, SIDE, SIDE)


def per_row(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Views of a row of the batch side by side, padded with empty ones; tiles first, overview last."""
    views = [[view for number in row for view in _views(number)] for row in rows]
    stacked = torch.zeros(len(rows), max(map(len, views)), 3, SIDE, SIDE)
    mask = torch.zeros(len(rows), stacked.shape[1], SIDE, SIDE, dtype=torch.long)
    for i, row in enumerate(views):
        for j, view in enumerate(row):
            stacked[i, j], mask[i, j] = view, 1
    runs = tuple(_idefics_run(*_shape(number)) for row in rows for number in row)
    return Images({"pixel_values": stacked, "pixel_attention_mask": mask}, runs)


def flat(write: Callable[[int, int], tuple[int, ...]]) -> Callable[..., Images]:
    """All views of the batch in one row.

    Args:
        write: the token ids of an image of so many rows and columns of tiles.
    """

    def images(config: Any, rows: Sequence[Sequence[int]]) -> Images:
        numbers = [number for row in rows for number in row]
        views = torch.cat([_views(number) for number in numbers])
        return Images({"pixel_values": views}, tuple(write(*_shape(number)) for number in numbers))

    return images


def _idefics_run(rows: int, columns: int) -> tuple[int, ...]:
    """One mark around every tile and one naming its place, lines of tiles broken, the overview last."""
    overview = (START, GLOBAL, *SQUARE, START)
    line = ((START, ROW, *SQUARE) * columns, BREAK)
    tiles = (*line[0], line[1]) * rows
    return (*tiles, BREAK, *overview) if rows * columns > 1 else overview


def _ovis_run(rows: int, columns: int) -> tuple[int, ...]:
    """The overview first; between tiles a column mark, between rows a row mark."""
    line = (*((*SQUARE, COLUMN) * columns)[:-1], ROW)
    tiles = (line * rows)[:-1] if rows * columns > 1 else ()
    return (START, *SQUARE, GLOBAL, *tiles, END)


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("idefics2", _idefics2, per_row),
    TinyHost("idefics3", _idefics3, per_row),
    TinyHost("smolvlm", _smolvlm, per_row),
    TinyHost("ovis2", _ovis2, flat(_ovis_run)),
)

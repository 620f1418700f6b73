"""Tiny hosts for documents: a view of the whole page and square crops of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.llava import language_config
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

PAGE, CROP = 48, 32
"""Pixels along the side of the whole view and of a crop; eight of them make a token."""
STRIDE = 8
SHAPES = ((1, 1), (1, 2), (2, 2), (2, 1))
"""Rows and columns of crops of image n modulo their number; one crop would be the page itself and is left out."""


def _granite_docling() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": CROP, "patch_size": 2, "scale_factor": 4, "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": 32, "initializer_range": 0.2,
    }  # fmt: skip
    text = language_config(
        dict, embedding_multiplier=2.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.3
    )
    config = transformers.GraniteDoclingConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, pad_token_id=0
    )
    return seeded(lambda: transformers.GraniteDoclingForConditionalGeneration(config))


def _step3p7() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": PAGE,
        "patch_size": STRIDE // 4, "mlp_ratio": 2.0, "layer_scale_init_value": 1.0, "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }  # fmt: skip
    text = language_config(
        dict, head_dim=8, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, share_expert_dim=16,
        mlp_layer_types=["dense", "sparse"], layer_types=["sliding_attention", "full_attention"], sliding_window=64,
    )  # fmt: skip
    config = transformers.Step3p7Config(text_config=text, vision_config=vision, image_token_id=IMAGE)
    return seeded(lambda: transformers.Step3p7ForConditionalGeneration(config))


def _sam(**settings: Any) -> dict[str, Any]:
    """Patches of two pixels, which three strides of two make eight."""
    sizes: dict[str, Any] = {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32,
        "image_size": PAGE, "patch_size": STRIDE // 4, "window_size": 6, "global_attn_indexes": [1],
        "downsample_channels": [16, 32], "initializer_range": 0.2,
    }  # fmt: skip
    return sizes | settings


def _experts() -> dict[str, Any]:
    return language_config(
        dict, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1,
        topk_group=1, mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip


def _unlimited_ocr() -> Any:
    encoder: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": PAGE, "patch_size": STRIDE, "initializer_range": 0.2,
    }  # fmt: skip
    vision: dict[str, Any] = {"sam_config": _sam(), "encoder_config": encoder}
    config = transformers.UnlimitedOcrConfig(text_config=_experts(), vision_config=vision, image_token_id=IMAGE)
    return seeded(lambda: transformers.UnlimitedOcrForConditionalGeneration(config))


def _deepseek_ocr2() -> Any:
    """Its 144 learned queries are fixed in the code."""
    encoder = language_config(dict, max_position_embeddings=512)
    vision: dict[str, Any] = {"sam_config": _sam(), "encoder_config": encoder}
    config = transformers.DeepseekOcr2Config(text_config=_experts(), vision_config=vision, image_token_id=IMAGE)
    return seeded(lambda: transformers.DeepseekOcr2ForConditionalGeneration(config))


def _shape(number: int) -> tuple[int, int]:
    return SHAPES[number % len(SHAPES)]


def _count(number: int) -> int:
    rows, columns = _shape(number)
    return rows * columns if rows * columns > 1 else 0


def page_and_crops(write: Callable[[int, int, int], tuple[int, ...]], grid: bool = False) -> Callable[..., Images]:
    """All pages, and apart from them the crops of all pages.

    Args:
        write: the token ids of an image of so many rows and columns of crops and so many crops.
        grid: also give columns and rows of crops.
    """

    def images(config: Any, rows: Sequence[Sequence[int]]) -> Images:
        numbers = [number for row in rows for number in row]
        inputs: dict[str, Any] = {"pixel_values": torch.stack([pixels(n, 3, PAGE, PAGE) for n in numbers])}
        if any(map(_count, numbers)):
            local = [pixels(number + 1000, _count(number), 3, CROP, CROP) for number in numbers]
            inputs["pixel_values_local"] = torch.cat(local)
        inputs["num_local_patches"] = [_count(number) for number in numbers]
        if grid:
            inputs["patches_grid"] = [list(_shape(number))[::-1] for number in numbers]
        return Images(inputs, tuple(write(*_shape(number), _count(number)) for number in numbers))

    return images


def tiles_of_rows(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Crops of a row of the batch side by side, padded with empty ones; the page, seen as small, is the last."""
    counts = [[_count(number) + 1 for number in row] for row in rows]
    tiles = torch.zeros(len(rows), max(map(sum, counts)), 3, CROP, CROP)
    mask = torch.zeros(tiles.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        views: list[Tensor] = [pixels(n, count, 3, CROP, CROP) for n, count in zip(row, counts[i], strict=True)]
        if views:
            tiles[i, : sum(counts[i])], mask[i, : sum(counts[i])] = torch.cat(views), True
    runs = tuple(_docling_run(*_shape(number)) for row in rows for number in row)
    return Images({"pixel_values": tiles, "pixel_attention_mask": mask}, runs)


def _docling_run(rows: int, columns: int) -> tuple[int, ...]:
    square = (IMAGE,) * 16
    line = (*(START, ROW, *square) * columns, BREAK)
    overview = (BREAK, START, GLOBAL, *square, START) if rows * columns > 1 else ()
    return (*line * rows, *overview)


def _step_run(rows: int, columns: int, count: int) -> tuple[int, ...]:
    """Crops in brackets, a mark at the end of every line of them but the last, then the page."""
    crop = (ROW, *(IMAGE,) * (CROP // STRIDE) ** 2, COLUMN)
    lines = [crop * columns] * rows if count else []
    inner = [token for i, line in enumerate(lines) for token in (*line, *((BREAK,) if i < rows - 1 else ()))]
    return (*inner, START, *(IMAGE,) * (PAGE // STRIDE) ** 2, END)


def _unlimited_run(rows: int, columns: int, count: int) -> tuple[int, ...]:
    """Lines of the joined crops and of the page each end in a newline, the whole in a separator."""
    page, crop = PAGE // STRIDE, CROP // STRIDE
    return (IMAGE,) * ((rows * crop * (columns * crop + 1) if count else 0) + page * (page + 1) + 1)


def _deepseek_run(rows: int, columns: int, count: int) -> tuple[int, ...]:
    return (IMAGE,) * (144 * (count + 1) + 1)


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("granite_docling", _granite_docling, tiles_of_rows),
    TinyHost("step3p7", _step3p7, page_and_crops(_step_run)),
    TinyHost("unlimited_ocr", _unlimited_ocr, page_and_crops(_unlimited_run, grid=True)),
    TinyHost("deepseek_ocr2", _deepseek_ocr2, page_and_crops(_deepseek_run)),
)

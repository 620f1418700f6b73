"""Tiny hosts of the Pixtral kind: one grid per image whose sides follow the image's, or one per view of it."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.llava import language_config
from tokenflex.testing.zoo.recipe import BREAK, END, GLOBAL, IMAGE, ROW, START, Images, TinyHost, pixels, seeded

PATCH, MERGE = 2, 2
SIZES = ((16, 16), (12, 24), (24, 16), (8, 32))
"""Height and width in pixels of image n modulo their number; four pixels make a token."""
TILE = 16
"""Side in pixels of the tiles of LFM2-VL."""


def _pixtral() -> transformers.PixtralVisionConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": PATCH, "initializer_range": 0.2, "head_dim": 8,
    }  # fmt: skip
    return transformers.PixtralVisionConfig(**sizes)


def _mistral3() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE, "spatial_merge_size": MERGE, "tie_word_embeddings": False}
    text = language_config(transformers.MistralConfig, head_dim=8, sliding_window=None)
    config = transformers.Mistral3Config(text_config=text, vision_config=_pixtral(), **settings)
    return seeded(lambda: transformers.Mistral3ForConditionalGeneration(config))


def _mistral_large4() -> Any:
    """Sparse attention over at most 512 tokens, which is all of them here; one dense layer, one with experts."""
    text = language_config(
        transformers.MistralLarge4TextConfig, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, kv_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
        index_topk=512, index_head_dim=16, index_n_heads=2,
    )  # fmt: skip
    settings: dict[str, Any] = {"image_token_index": IMAGE, "spatial_merge_size": MERGE}
    config = transformers.MistralLarge4Config(text_config=text, vision_config=_pixtral(), **settings)
    return seeded(lambda: transformers.MistralLarge4ForConditionalGeneration(config))


def _lighton_ocr() -> Any:
    settings: dict[str, Any] = {"image_token_id": IMAGE, "spatial_merge_size": MERGE, "tie_word_embeddings": False}
    config = transformers.LightOnOcrConfig(
        text_config=language_config(transformers.Qwen3Config, head_dim=8), vision_config=_pixtral(), **settings
    )
    return seeded(lambda: transformers.LightOnOcrForConditionalGeneration(config))


def _lfm2_vl() -> Any:
    """Alternates a short convolution over the text with attention."""
    tower = transformers.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_patches=64,
        patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    text = language_config(
        transformers.Lfm2Config, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    )
    settings: dict[str, Any] = {"image_token_id": IMAGE, "projector_hidden_size": 32, "downsample_factor": MERGE}
    config = transformers.Lfm2VlConfig(text_config=text, vision_config=tower, **settings)
    return seeded(lambda: transformers.Lfm2VlForConditionalGeneration(config))


def padded(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pixels in the upper left corner of a canvas that fits all images, and their heights and widths."""
    sizes = torch.tensor([SIZES[number % len(SIZES)] for number in numbers])
    canvas = torch.zeros(len(numbers), 3, *sizes.amax(0).tolist())
    for i, (number, (height, width)) in enumerate(zip(numbers, sizes.tolist(), strict=True)):
        canvas[i, :, :height, :width] = pixels(number, 3, height, width)
    return canvas, sizes


def lines(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """A break after every row of tokens, an end after the last."""
    canvas, sizes = padded([number for row in rows for number in row])
    side = PATCH * MERGE
    written = [(*(IMAGE,) * (width // side), BREAK) * (height // side) for height, width in sizes.tolist()]
    return Images({"pixel_values": canvas, "image_sizes": sizes}, tuple((*run[:-1], END) for run in written))


def blocks(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Images whose placeholders are one run each."""
    canvas, sizes = padded([number for row in rows for number in row])
    runs = tuple((IMAGE,) * (h // (PATCH * MERGE) * (w // (PATCH * MERGE))) for h, w in sizes.tolist())
    return Images({"pixel_values": canvas, "image_sizes": sizes}, runs)


def tiles_and_thumbnail(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Even images at their own size; odd ones as two square tiles in a row and a small view of the whole."""
    shapes: list[tuple[int, int]] = []
    patches: list[Tensor] = []
    runs: list[tuple[int, ...]] = []
    for number in (number for row in rows for number in row):
        own = SIZES[number % len(SIZES)]
        views = [own] if number % 2 == 0 else [(TILE, TILE), (TILE, TILE), own]
        for i, (height, width) in enumerate(views):
            shapes.append((height // PATCH, width // PATCH))
            patches.append(pixels(10 * number + i, height * width // PATCH**2, 3 * PATCH**2))
        squares = [(IMAGE,) * (height * width // (PATCH * MERGE) ** 2) for height, width in views]
        inner = (*(ROW, *squares[0]) * 2, GLOBAL, *squares[-1]) if len(views) > 1 else squares[0]
        runs.append((START, *inner, END))
    canvas = torch.zeros(len(patches), max(map(len, patches)), 3 * PATCH**2)
    mask = torch.zeros(canvas.shape[:2], dtype=torch.long)
    for i, view in enumerate(patches):
        canvas[i, : len(view)], mask[i, : len(view)] = view, 1
    inputs = {"pixel_values": canvas, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
    return Images(inputs, tuple(runs))


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("mistral3", _mistral3, lines),
    TinyHost("mistral_large4", _mistral_large4, lines),
    TinyHost("lighton_ocr", _lighton_ocr, blocks),
    TinyHost("lfm2_vl", _lfm2_vl, tiles_and_thumbnail),
)

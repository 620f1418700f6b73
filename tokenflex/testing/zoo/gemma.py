"""Tiny hosts of the fourth Gemma: patches with explicit places, one grid per image, seen in both directions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from tokenflex.testing.zoo.llava import language_config
from tokenflex.testing.zoo.recipe import END, IMAGE, START, VIDEO, VOCABULARY, Images, TinyHost, pixels, seeded

PATCH, POOL, MOST = 2, 2, 32
"""Pixels per patch, patches per token (both per side), and tokens every image is padded to."""
GRIDS = ((4, 4), (4, 6), (6, 4), (8, 4))
"""Rows and columns of tokens of image n modulo their number."""
AUDIO = 12


def _marks() -> dict[str, Any]:
    return {
        "boi_token_id": START, "eoi_token_id": END, "image_token_id": IMAGE, "video_token_id": VIDEO,
        "audio_token_id": AUDIO, "boa_token_id": AUDIO + 1, "eoa_token_index": AUDIO + 2, "audio_config": None,
    }  # fmt: skip


def _text(kind: Any, **settings: Any) -> Any:
    return language_config(
        kind, head_dim=8, global_head_dim=8, sliding_window=24, layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention="vision", **settings,
    )  # fmt: skip


def _gemma4() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": POOL, "patch_size": PATCH,
        "position_embedding_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    text = _text(transformers.Gemma4TextConfig, hidden_size_per_layer_input=4, vocab_size_per_layer_input=VOCABULARY)
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, initializer_range=0.2, **_marks())
    return seeded(lambda: transformers.Gemma4ForConditionalGeneration(config))


def _gemma4_unified() -> Any:
    """No tower: a patch as large as a token is projected."""
    vision: dict[str, Any] = {
        "pooling_kernel_size": POOL, "patch_size": PATCH, "mm_embed_dim": 32, "mm_posemb_size": 64,
        "output_proj_dims": 32, "initializer_range": 0.2,
    }  # fmt: skip
    text = _text(transformers.Gemma4UnifiedTextConfig)
    config = transformers.Gemma4UnifiedConfig(text_config=text, vision_config=vision, initializer_range=0.2, **_marks())
    return seeded(lambda: transformers.Gemma4UnifiedForConditionalGeneration(config))


def placed(per_token: int) -> Callable[..., Images]:
    """Patches in reading order with their column and row, padded with places of -1.

    Args:
        per_token: patches per token along each side.
    """

    def images(config: Any, rows: Sequence[Sequence[int]]) -> Images:
        numbers = [number for row in rows for number in row]
        channels = 3 * (PATCH * POOL // per_token) ** 2
        values = torch.zeros(len(numbers), MOST * per_token**2, channels)
        places = torch.full((len(numbers), MOST * per_token**2, 2), -1)
        runs: list[tuple[int, ...]] = []
        for i, number in enumerate(numbers):
            height, width = GRIDS[number % len(GRIDS)]
            y, x = (axis.flatten() for axis in torch.meshgrid(
                torch.arange(height * per_token), torch.arange(width * per_token), indexing="ij"
            ))  # fmt: skip
            values[i, : len(y)], places[i, : len(y)] = pixels(number, len(y), channels), torch.stack([x, y], 1)
            runs.append((START, *(IMAGE,) * (height * width), END))
        return Images({"pixel_values": values, "image_position_ids": places}, tuple(runs))

    return images


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("gemma4", _gemma4, placed(POOL), token_types="mm_token_type_ids"),
    TinyHost("gemma4_unified", _gemma4_unified, placed(1), token_types="mm_token_type_ids"),
)

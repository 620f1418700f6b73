"""A small Qwen2.5-VL from config: stock classes, stock processor, the same word-level tokenizer.

Its tower takes images of any size, so that they can be made smaller before they are encoded.
"""

from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tokenflex.quickstart.host import IMAGE, build_tokenizer, text_config
from tokenflex.quickstart.images import CELL, COLS, ROWS

MERGE = 2
PATCH = CELL // MERGE
WIDTH = 96
SHARES = (1 / 16, 1 / 4, 9 / 16, 1.0)
"""Of an image's pixels: its sides become a quarter, a half, three quarters, and stay as they are."""
VIDEO = "<video>"
"""A placeholder that the classes ask for; no word of the tokenizer, as there are no videos."""


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None, cells: int = ROWS * COLS) -> Qwen2_5_VLProcessor:
    """Patches of 8 pixels, four of which make a token; images keep their size.

    Args:
        tokenizer: None for the quickstart's.
        cells: 16-pixel cells of an image; four times as many are allowed.
    """
    tokenizer = tokenizer or build_tokenizer()
    limits = {"shortest_edge": CELL * CELL, "longest_edge": 4 * cells * CELL * CELL}
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Qwen2VLImageProcessor(size=limits, **sizes)
    videos = Qwen2VLVideoProcessor(size=limits, **sizes)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def build_host(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """0.7 M parameters; weights come from torch's global generator."""
    tokenizer: Any = processor.tokenizer
    text = text_config(tokenizer)
    per_axis = text.hidden_size // text.num_attention_heads // 2 // 3
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "max_position_embeddings", "initializer_range", "tie_word_embeddings",
              "pad_token_id", "bos_token_id", "eos_token_id")  # fmt: skip
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [per_axis] * 3}
    vision = {
        "depth": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "out_hidden_size": text.hidden_size,
        "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": MERGE, "fullatt_block_indexes": [0, 1],
        "window_size": 4 * CELL,
    }  # fmt: skip
    placeholder = tokenizer.convert_tokens_to_ids(IMAGE)
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**{name: getattr(text, name) for name in shared}, "rope_parameters": sections},
        image_token_id=placeholder,
        video_token_id=len(tokenizer) + 1,
        tie_word_embeddings=True,
    )
    host = Qwen2_5_VLForConditionalGeneration(config)
    host.generation_config.pad_token_id = tokenizer.pad_token_id
    return host


def seeded(seed: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Host and processor; the same seed gives the same weights."""
    torch.manual_seed(seed)
    processor = build_processor()
    return build_host(processor), processor

"""A small Qwen2.5-VL from config for conversations of pictures: stock classes, stock processor, its own words."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from benchmarks.fading.pictures import CELL, SIDE
from benchmarks.fading.questions import REPLY, USER, words
from tokenflex.checkpoint import adapter_for
from tokenflex.contracts import HostAdapter
from tokenflex.quickstart.host import IMAGE, SPECIAL

MERGE = 2
PATCH = CELL // MERGE
WIDTH, LAYERS, HEADS, AXES = 96, 4, 3, [4, 6, 6]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{% for part in message.content %}{{ part.text }} {% endfor %}</s> {% endgeneration %}"
    "{% else %}<user> {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}<reply> {% endif %}{% endfor %}"
)
"""A user's turn is opened by a token of its own, and closed by the one that asks for the answer."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and a chat template that marks the answers."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), IMAGE, USER, REPLY, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", extra_special_tokens={"image_token": IMAGE}, **SPECIAL
    )
    fast.chat_template = TEMPLATE
    return fast


def build_processor() -> Qwen2_5_VLProcessor:
    """Patches of 8 pixels, four of which make a token; pictures keep their size."""
    tokenizer = build_tokenizer()
    limits = {"shortest_edge": CELL * CELL, "longest_edge": 4 * SIDE * SIDE * CELL * CELL}
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Qwen2VLImageProcessor(size=limits, **sizes)
    videos = Qwen2VLVideoProcessor(size=limits, **sizes)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def build_host(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """Under a million parameters; weights come from torch's global generator."""
    tokenizer: Any = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048, "initializer_range": 0.1, "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": AXES},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "out_hidden_size": WIDTH, "num_heads": 4,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "fullatt_block_indexes": [0, 1], "window_size": 4 * CELL,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
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


def reading_last_turn(host: Any, processor: Any) -> HostAdapter:
    """An adapter by which routers read the last turn's question only."""
    marker = [processor.tokenizer.convert_tokens_to_ids(USER)]
    return adapter_for(host, {"scope": "last-turn", "marker": marker})

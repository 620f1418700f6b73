"""A small Qwen2.5-VL from config for conversations of pictures: stock classes, stock processor, its own words."""

from typing import Any

import torch
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from benchmarks.fading.pictures import CELL, SIDE
from benchmarks.fading.questions import USER, words
from tokenflex.checkpoint import adapter_for
from tokenflex.contracts import HostAdapter
from tokenflex.quickstart import qwen_host
from tokenflex.quickstart.host import IMAGE, build_tokenizer
from tokenflex.quickstart.qwen_host import MERGE, PATCH

WIDTH, LAYERS, HEADS, AXES, BASE = 96, 4, 1, [16, 16, 16], 1e6
BEFORE, SHARP, QUIET, ALIKE, LOUD, PREFERENCE = 2, 6, 0.1, 1.7, 0.3, 12.0
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{% for part in message.content %}{{ part.text }} {% endfor %}</s> {% endgeneration %}"
    "{% else %}<user> {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""A user's turn is opened by a token of its own."""


def build_processor() -> Qwen2_5_VLProcessor:
    """The quickstart's, with other words and a turn of its own for the user; pictures keep their size."""
    return qwen_host.build_processor(build_tokenizer([USER, *words()], TEMPLATE), SIDE * SIDE)


def build_host(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """Under a million parameters; weights come from torch's global generator."""
    tokenizer: Any = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048, "initializer_range": 0.1, "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE, "mrope_section": AXES},
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
    _begin_as_pretrained(host, config.image_token_id)
    return host


@torch.no_grad()
def _begin_as_pretrained(host: Any, image: int) -> None:
    """What pretrained models bring along: words know what stood before, look for their like, and say what is there.

    Words are orthogonal to each other. The first two layers attend to the token before. In the others, queries and
    keys begin alike, with a preference for tokens like the placeholder's, and values are given out as they came in.
    What else there is begins at zero.

    Args:
        image: the placeholder's id, a word which visual tokens are taught to be like.
    """
    words = nn.init.orthogonal_(host.get_input_embeddings().weight)
    number = torch.arange(SHARP)
    angle, size = BASE ** (-number / (WIDTH // 2)), (SHARP * WIDTH**0.5) ** 0.5
    for i, layer in enumerate(host.model.language_model.layers):
        attention = layer.self_attn
        for part in (attention.q_proj, attention.v_proj):
            nn.init.orthogonal_(part.weight)
            part.bias.zero_()
        attention.k_proj.bias.zero_()
        layer.mlp.down_proj.weight.zero_()
        attention.q_proj.weight *= QUIET if i < BEFORE else ALIKE
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_((QUIET if i < BEFORE else LOUD) * attention.v_proj.weight.T)
        if i < BEFORE:
            attention.k_proj.bias[number] = size
            attention.q_proj.bias[number] = size * angle.cos()
            attention.q_proj.bias[WIDTH // 2 + number] = -size * angle.sin()
        else:
            attention.q_proj.bias.copy_(PREFERENCE * attention.k_proj.weight @ words[image])


def seeded(seed: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Host and processor; the same seed gives the same weights."""
    torch.manual_seed(seed)
    processor = build_processor()
    return build_host(processor), processor


def reading_last_turn(host: Any, processor: Any) -> HostAdapter:
    """An adapter by which routers read the last turn's question only."""
    marker = [processor.tokenizer.convert_tokens_to_ids(USER)]
    return adapter_for(host, {"scope": "last-turn", "marker": marker})

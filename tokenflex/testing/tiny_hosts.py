"""Tiny hosts with random weights, built from configs: no download, the real classes and the real processor."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next import LlavaNextImageProcessor

PATCH, SIDE = 4, 32
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% if message.role == 'assistant' %} </s> {% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tiny_tokenizer(words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a few words, left padding, with a chat template."""
    vocabulary = [
        *SPECIAL.values(),
        "<image>",
        "user",
        "assistant",
        ":",
        *words,
        *(f"w{i}" for i in range(40)),
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        **SPECIAL,
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_llava_next_processor(words: tuple[str, ...] = ()) -> LlavaNextProcessor:
    """The stock processor for `tiny_llava_next`: 32-pixel tiles of 8 x 8 patches, at most 2 x 2 local tiles."""
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        images,
        tiny_tokenizer(words),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def tiny_llava_next(seed: int = 0, **overrides: Any) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT of 0.1 M parameters with large random weights, so that outputs differ visibly.

    Args:
        overrides: replace entries of the `LlavaNextConfig`.
    """
    vocabulary = len(tiny_tokenizer())
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "image_token_id": 4,
        "image_grid_pinpoints": PINPOINTS,
        "vision_config": vision,
        "text_config": text,
        "tie_word_embeddings": False,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    host = LlavaNextForConditionalGeneration(LlavaNextConfig(**(settings | overrides)))
    torch.random.set_rng_state(state)
    host.generation_config.pad_token_id = 0
    return host.eval()

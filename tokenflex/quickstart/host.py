"""A small LLaVA-NeXT from config: stock classes, stock processor, a word-level tokenizer."""

from collections.abc import Sequence
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

from tokenflex.quickstart.images import CELL, words

TILE = 64
PINPOINTS = [[TILE, 2 * TILE]]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{% for part in message.content %}{{ part.text }} {% endfor %}</s> {% endgeneration %}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def build_tokenizer(known: Sequence[str] = (), template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per word, and a chat template that marks the answers.

    Args:
        known: the words; empty for those of the quickstart's questions and answers.
    """
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), IMAGE, *(known or words())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", extra_special_tokens={"image_token": IMAGE}, **SPECIAL
    )
    fast.chat_template = template
    return fast


def build_processor() -> LlavaNextProcessor:
    """64-pixel tiles of 4 x 4 patches: the whole image and its two halves."""
    images = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaNextProcessor(
        images,
        build_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def text_config(tokenizer: Any) -> LlamaConfig:
    """A language model of three layers."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        initializer_range=0.1, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def build_host(processor: LlavaNextProcessor) -> LlavaNextForConditionalGeneration:
    """0.5 M parameters; weights come from torch's global generator."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        image_size=TILE, patch_size=CELL, projection_dim=32,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text_config(tokenizer),
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_grid_pinpoints": PINPOINTS,
        "vision_feature_layer": -1,
        "tie_word_embeddings": True,
    }
    config = LlavaNextConfig(**settings)
    host = LlavaNextForConditionalGeneration(config)
    host.generation_config.pad_token_id = tokenizer.pad_token_id
    return host


def seeded(seed: int) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Host and processor; the same seed gives the same weights."""
    torch.manual_seed(seed)
    processor = build_processor()
    return build_host(processor), processor

"""Tiny hosts of the LLaVA kind: one square grid of tokens per image or tile, nothing between them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from tokenflex.testing.zoo.recipe import BOS, EOS, IMAGE, PAD, VIDEO, VOCABULARY, Images, TinyHost, pixels, seeded

SIDE, PATCH = 16, 4


def clip(**settings: Any) -> transformers.CLIPVisionConfig:
    """A CLIP tower of 4 x 4 patches."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": PATCH, "projection_dim": 32,
    }  # fmt: skip
    return transformers.CLIPVisionConfig(**(sizes | settings))


def siglip(**settings: Any) -> transformers.SiglipVisionConfig:
    """A SigLIP tower of 4 x 4 patches, without a pooling head."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
    }  # fmt: skip
    return transformers.SiglipVisionConfig(**(sizes | settings))


def language_config(kind: Callable[..., Any], **settings: Any) -> Any:
    """A text config of two layers with weights large enough for outputs to differ visibly."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.2,
    }  # fmt: skip
    return kind(**(sizes | settings))


def llama(**settings: Any) -> transformers.LlamaConfig:
    """A Llama as small as `language_config`."""
    return language_config(transformers.LlamaConfig, **settings)


def _llava() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE}
    config = transformers.LlavaConfig(vision_config=clip(), text_config=llama(), **settings)
    return seeded(lambda: transformers.LlavaForConditionalGeneration(config))


def _vipllava() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE, "vision_feature_layer": [-1, -2, 1]}
    config = transformers.VipLlavaConfig(vision_config=clip(), text_config=llama(), **settings)
    return seeded(lambda: transformers.VipLlavaForConditionalGeneration(config))


def _video_llava() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = transformers.VideoLlavaConfig(vision_config=clip(), text_config=llama(), **settings)
    return seeded(lambda: transformers.VideoLlavaForConditionalGeneration(config))


def one_square(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Every image is one square tile."""
    numbers = [number for row in rows for number in row]
    stacked = torch.stack([pixels(number, 3, SIDE, SIDE) for number in numbers])
    return Images({"pixel_values": stacked}, ((IMAGE,) * (SIDE // PATCH) ** 2,) * len(numbers))


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("llava", _llava, one_square),
    TinyHost("vipllava", _vipllava, one_square),
    TinyHost("video_llava", _video_llava, one_square),
)

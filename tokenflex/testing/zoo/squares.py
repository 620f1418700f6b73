"""Tiny hosts with one square grid of tokens per view, in the order the encoder saw them."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.llava import SIDE, clip, language_config, llama, one_square, siglip
from tokenflex.testing.zoo.recipe import BREAK, END, IMAGE, START, WORD, Images, TinyHost, pixels, seeded

SQUARE = (IMAGE,) * 16
SHARP = 2 * SIDE
"""Side of the second, larger view of DeepSeek's hybrid."""
CROPS = 2
"""Crops of every other image that Gemma 3 pans over."""


def _gemma3(kind: Any = transformers.Gemma3Config) -> Any:
    text = language_config(
        transformers.Gemma3TextConfig, num_hidden_layers=3, head_dim=8, query_pre_attn_scalar=8, sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    settings: dict[str, Any] = {"mm_tokens_per_image": 16, "initializer_range": 0.2, "tie_word_embeddings": False}
    special: dict[str, Any] = {"boi_token_index": START, "eoi_token_index": END, "image_token_index": IMAGE}
    config = kind(text_config=text, vision_config=siglip(patch_size=2), **settings, **special)

    def build() -> Any:
        host = transformers.Gemma3ForConditionalGeneration(config)
        torch.nn.init.normal_(host.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
        return host

    return seeded(build)


def _paligemma() -> Any:
    settings: dict[str, Any] = {"image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32}
    config = transformers.PaliGemmaConfig(
        text_config=language_config(transformers.GemmaConfig, head_dim=8), vision_config=siglip(), **settings
    )
    return seeded(lambda: transformers.PaliGemmaForConditionalGeneration(config))


def _deepseek() -> Any:
    config = transformers.DeepseekVLConfig(text_config=llama(), vision_config=siglip(), image_token_id=IMAGE)
    return seeded(lambda: transformers.DeepseekVLForConditionalGeneration(config))


def _deepseek_hybrid() -> Any:
    sharp: dict[str, Any] = {
        "model_type": "sam_vision_model", "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "mlp_dim": 32, "image_size": SHARP, "patch_size": SHARP // 8, "window_size": 4,
        "global_attn_indexes": [1], "initializer_range": 0.2, "num_pos_feats": 4,
    }  # fmt: skip
    settings: dict[str, Any] = {"image_token_id": IMAGE, "high_res_vision_config": sharp}
    config = transformers.DeepseekVLHybridConfig(text_config=llama(), vision_config=siglip(), **settings)

    def build() -> Any:
        host = transformers.DeepseekVLHybridForConditionalGeneration(config)
        torch.nn.init.ones_(host.model.high_res_vision_alpha)
        return host

    return seeded(build)


def _janus() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE,
        "patch_size": SIDE // 4, "mlp_ratio": 2.0, "projection_dim": 32, "num_image_tokens": 16,
    }  # fmt: skip
    painter: dict[str, Any] = {
        "embed_dim": 4, "num_embeddings": 16, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1],
        "num_res_blocks": 0, "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32,
    }  # fmt: skip
    settings: dict[str, Any] = {"vision_config": vision, "vq_config": painter, "image_token_id": IMAGE}
    return seeded(
        lambda: transformers.JanusForConditionalGeneration(transformers.JanusConfig(text_config=llama(), **settings))
    )


def _fast_vlm() -> Any:
    """ConvNeXt stands in for the FastViT of timm: what matters is a tower that returns maps."""
    sizes: dict[str, Any] = {
        "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 2, "image_size": SIDE,
        "hidden_size": 32, "layer_scale_init_value": 1.0, "initializer_range": 0.2,
    }  # fmt: skip
    settings: dict[str, Any] = {"image_token_index": IMAGE, "image_seq_length": len(SQUARE)}
    config = transformers.FastVlmConfig(
        text_config=language_config(transformers.Qwen2Config),
        vision_config=transformers.ConvNextConfig(**sizes),
        **settings,
    )
    return seeded(lambda: transformers.FastVlmForConditionalGeneration(config))


def _perception_lm() -> Any:
    """CLIP stands in for the tower of timm, whose width is read from ``model_args``."""
    tower = clip(patch_size=2, model_args={"embed_dim": 32})
    settings: dict[str, Any] = {"projector_pooling_ratio": 2, "image_token_id": IMAGE, "vision_use_cls_token": True}
    config = transformers.PerceptionLMConfig(text_config=llama(), vision_config=tower, **settings)
    return seeded(lambda: transformers.PerceptionLMForConditionalGeneration(config))


def in_brackets(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """One square per image, between a start and an end."""
    seen = one_square(config, rows)
    return Images(seen.inputs, tuple((START, *run, END) for run in seen.runs))


def with_sharp_view(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """One square per image, seen at two sizes."""
    seen = one_square(config, rows)
    sharp = torch.stack([pixels(n + 1000, 3, SHARP, SHARP) for row in rows for n in row])
    return Images({**seen.inputs, "high_res_pixel_values": sharp}, seen.runs)


def panned(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """The image, then for odd ones some crops, each a square in brackets with words between them."""
    numbers = [number for row in rows for number in row]
    views: list[Tensor] = [pixels(n, 1 + CROPS * (n % 2), 3, SIDE, SIDE) for n in numbers]
    square = (BREAK, START, *SQUARE, END, BREAK)
    crops = (WORD, *square, WORD + 1, *square, *square)
    runs = tuple(crops if number % 2 else square for number in numbers)
    return Images({"pixel_values": torch.cat(views)}, runs)


def tiles_alike(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Three tiles for every image of a batch, in one run: Perception LM stacks them."""
    numbers = [number for row in rows for number in row]
    stacked = torch.stack([pixels(number, 3, 3, SIDE, SIDE) for number in numbers])
    return Images({"pixel_values": stacked}, (SQUARE * 3,) * len(numbers))


def prefix(ids: Tensor) -> dict[str, Tensor]:
    """PaliGemma's types: all of a prompt is prefix, which sees itself in both directions."""
    return {"token_type_ids": torch.zeros_like(ids)}


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("fast_vlm", _fast_vlm, one_square),
    TinyHost("gemma3", _gemma3, panned, token_types="token_type_ids"),
    TinyHost("shieldgemma2", lambda: _gemma3(transformers.ShieldGemma2Config), panned, token_types="token_type_ids"),
    TinyHost("paligemma", _paligemma, one_square, more_types=prefix),
    TinyHost("deepseek_vl", _deepseek, one_square),
    TinyHost("deepseek_vl_hybrid", _deepseek_hybrid, with_sharp_view),
    TinyHost("janus", _janus, in_brackets),
    TinyHost("perception_lm", _perception_lm, tiles_alike),
)

"""Tiny hosts of the Qwen-VL kind: a ragged grid of tokens per image, positions in time, height and width."""

from typing import Any

import torch
import transformers

from tokenflex.testing.zoo.grids import IDS, SMALL_TEXT, Rows, grid_images, grid_videos, in_order, timed_videos
from tokenflex.testing.zoo.recipe import Images, TinyHost, seeded

VISION: dict[str, Any] = {
    "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip


def section(sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Rotary settings that give ``sizes`` frequencies to time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sizes), **more}


def _qwen2_vl() -> Any:
    vision = {**VISION, "depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    text = {**SMALL_TEXT, "rope_parameters": section((2, 1, 1))}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen2VLForConditionalGeneration(config))


def _qwen2_5_vl() -> Any:
    vision = {
        **VISION, "depth": 3, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }  # fmt: skip
    text = {**SMALL_TEXT, "rope_parameters": section((2, 1, 1))}
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config))


def newer_vision(**settings: Any) -> dict[str, Any]:
    """Settings of the tower that Qwen3-VL and its successors share."""
    sizes = {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
    return {**VISION, **sizes, "num_position_embeddings": 36, **settings}


def _qwen3_vl() -> Any:
    text = {**SMALL_TEXT, "head_dim": 12, "rope_parameters": section((2, 2, 2), mrope_interleaved=True)}
    vision = newer_vision(deepstack_visual_indexes=[0, 1])
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen3VLForConditionalGeneration(config))


def _qwen3_vl_moe() -> Any:
    text = {**SMALL_TEXT, **EXPERTS, "head_dim": 12, "rope_parameters": section((2, 2, 2), mrope_interleaved=True)}
    vision = newer_vision(deepstack_visual_indexes=[0, 1])
    config = transformers.Qwen3VLMoeConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen3VLMoeForConditionalGeneration(config))


def partial(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Rotary settings that turn half of each head."""
    return section(sizes, mrope_interleaved=True, partial_rotary_factor=0.5)


def _qwen3_5() -> Any:
    text = {**SMALL_TEXT, **LINEAR, "head_dim": 24, "rope_parameters": partial((2, 2, 2))}
    config = transformers.Qwen3_5Config(vision_config=newer_vision(), text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen3_5ForConditionalGeneration(config))


def _qwen3_5_moe() -> Any:
    text = {
        **SMALL_TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16, "head_dim": 24,
        "rope_parameters": partial((2, 2, 2)),
    }  # fmt: skip
    config = transformers.Qwen3_5MoeConfig(vision_config=newer_vision(), text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen3_5MoeForConditionalGeneration(config))


def _qwen4_exp() -> Any:
    text = {
        **SMALL_TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16, "head_dim": 24,
        "rope_parameters": partial((2, 2, 2)), "hc_count": 2, "hc_lowrank": 8, "ple_layer_ids": [1],
        "ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 1, "split_ngram_parts": 1,
        "heads_per_ngram": 2, "ngram_size": 3, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
        "indexer_budget": 256, "indexer_compress_ratio": 4,
    }  # fmt: skip
    config = transformers.Qwen4ExpConfig(vision_config=newer_vision(), text_config=text, **IDS)
    return seeded(lambda: transformers.Qwen4ExpForConditionalGeneration(config))


def paced_videos(config: Any, rows: Rows) -> Images:
    """Videos whose frames stand for half a second more with each number."""
    made = grid_videos(config, rows)
    seconds = torch.tensor([1.0 + 0.5 * number for number in in_order(rows)])
    return Images({**made.inputs, "second_per_grid_ts": seconds}, made.runs)


TYPES = "mm_token_type_ids"
HOSTS: tuple[TinyHost, ...] = (
    TinyHost("qwen2_vl", _qwen2_vl, grid_images, TYPES, grid_videos),
    TinyHost("qwen2_5_vl", _qwen2_5_vl, grid_images, TYPES, paced_videos),
    TinyHost("qwen3_vl", _qwen3_vl, grid_images, TYPES, timed_videos),
    TinyHost("qwen3_vl_moe", _qwen3_vl_moe, grid_images, TYPES, timed_videos),
    TinyHost("qwen3_5", _qwen3_5, grid_images, TYPES, timed_videos),
    TinyHost("qwen3_5_moe", _qwen3_5_moe, grid_images, TYPES, timed_videos),
    TinyHost("qwen4_exp", _qwen4_exp, grid_images, TYPES, timed_videos),
)

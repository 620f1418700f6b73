"""Tiny hosts outside Qwen and GLM whose text model, too, counts positions in time, height and width."""

from typing import Any

import transformers
from torch import Tensor

from tokenflex.testing.zoo.grids import IDS, SMALL_TEXT, Rows, grid, grid_images, in_order, timed_videos, wrapped
from tokenflex.testing.zoo.qwen import TYPES, newer_vision, section
from tokenflex.testing.zoo.recipe import END, IMAGE, START, VIDEO, Images, TinyHost, seeded

NAMES: dict[str, Any] = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END,
}  # fmt: skip


def _ernie() -> Any:
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        **SMALL_TEXT, "moe_intermediate_size": [16, 8], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
        "rope_parameters": section((1, 1, 2)),
    }  # fmt: skip
    names = {**NAMES, "video_start_token_id": 12, "video_end_token_id": 13}
    config = transformers.Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **names)
    return seeded(lambda: transformers.Ernie4_5_VLMoeForConditionalGeneration(config))


def ernie_types(ids: Tensor) -> dict[str, Tensor]:
    """Which experts a token may use: the ids around an image count as images."""
    seen = (ids == IMAGE) | (ids == START) | (ids == END)
    return {"moe_mm_token_type_ids": seen.long()}


def _paddle() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 24, "patch_size": 4, "spatial_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    text = {**SMALL_TEXT, "head_dim": 8, "rope_parameters": section((2, 1, 1))}
    config = transformers.PaddleOCRVLConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.PaddleOCRVLForConditionalGeneration(config))


def square_patches(config: Any, rows: Rows) -> Images:
    """Images whose patches keep the shape channels x height x width."""
    made, side = grid_images(config, rows), config.vision_config.patch_size
    values = made.inputs["pixel_values"].reshape(-1, 3, side, side)
    return Images({**made.inputs, "pixel_values": values}, made.runs)


def _hunyuan() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 4, "max_image_size": 24, "spatial_merge_size": 2, "out_hidden_size": 32, "text_hidden_size": 32,
        "initializer_range": 0.2,
    }  # fmt: skip
    text = {**SMALL_TEXT, "head_dim": 8, "rope_parameters": section((1, 1, 1, 1))}
    names: dict[str, Any] = {"image_token_id": IMAGE, "image_start_token_id": START, "image_end_token_id": END}
    config = transformers.HunYuanVLConfig(vision_config=vision, text_config=text, **names)
    return seeded(lambda: transformers.HunYuanVLForConditionalGeneration(config))


def lined_images(config: Any, rows: Rows) -> Images:
    """Images with one more placeholder at the end of each line, and one before and after all lines."""
    sizes = [grid(n) for n in in_order(rows)]
    runs = tuple(wrapped(*(IMAGE,) * (h * (w + 1) + 2)) for h, w in sizes)
    return Images(grid_images(config, rows).inputs, runs)


def _cohere_compass() -> Any:
    rope = {"full_attention": section((2, 1, 1), mrope_interleaved=True)}
    text = {**SMALL_TEXT, "logit_scale": 1.0, "rope_parameters": rope}
    vision = newer_vision(deepstack_visual_indexes=[0, 1])
    config = transformers.CohereCompassConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.CohereCompassForConditionalGeneration(config))


def _cosmos3_edge() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
        "num_patches": 36, "spatial_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    text = {**SMALL_TEXT, "head_dim": 8, "rope_parameters": section((2, 1, 1))}
    config = transformers.Cosmos3EdgeConfig(vision_config=vision, text_config=text, projector_hidden_size=32, **IDS)
    return seeded(lambda: transformers.Cosmos3EdgeForConditionalGeneration(config), 3)


def _cosmos3_omni() -> Any:
    rope = section((2, 2, 2), mrope_interleaved=True)
    text = {**SMALL_TEXT, "model_type": "qwen3_vl_text", "head_dim": 12, "rope_parameters": rope}
    vision = newer_vision(deepstack_visual_indexes=[0, 1], model_type="qwen3_vl_vision")
    config = transformers.Cosmos3OmniConfig(vision_config=vision, text_config=text, **IDS)
    return seeded(lambda: transformers.Cosmos3OmniForConditionalGeneration(config))


def _hy_v4_vl() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 4, "max_image_size": 24, "spatial_merge_size": 2, "out_hidden_size": 32,
        "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        **SMALL_TEXT, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "index_topk": 256,
        "index_head_dim": 8, "index_n_heads": 2, "hc_mult": 2, "rope_parameters": section((2, 1, 1)),
    }  # fmt: skip
    config = transformers.HYV4VLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO
    )
    return seeded(lambda: transformers.HYV4VLForConditionalGeneration(config))


def ruled_images(config: Any, rows: Rows) -> Images:
    """Images with one more placeholder at the end of each line."""
    sizes = [grid(n) for n in in_order(rows)]
    runs = tuple(wrapped(*(IMAGE,) * (h * (w + 1))) for h, w in sizes)
    return Images(grid_images(config, rows).inputs, runs)


NUMBERED = {"batch": "the host numbers images through the batch: a row's positions depend on the rows before it"}
HOSTS: tuple[TinyHost, ...] = (
    TinyHost("ernie4_5_vl_moe", _ernie, grid_images, TYPES, more_types=ernie_types),
    TinyHost("paddleocr_vl", _paddle, square_patches, TYPES),
    TinyHost("hunyuan_vl", _hunyuan, lined_images, TYPES, exceptions=NUMBERED),
    TinyHost("cohere_compass", _cohere_compass, grid_images, TYPES, timed_videos),
    TinyHost("cosmos3_edge", _cosmos3_edge, grid_images, TYPES, timed_videos),
    TinyHost("cosmos3_omni", _cosmos3_omni, grid_images, TYPES, timed_videos),
    TinyHost("hy_v4_vl", _hy_v4_vl, ruled_images, TYPES),
)

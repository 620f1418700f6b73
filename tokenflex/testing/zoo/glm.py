"""Tiny hosts of the GLM-V kind: as the Qwen-VL kind, but the frames of a video look like images."""

from typing import Any

import torch
import transformers
from torch import Tensor

from tokenflex.testing.zoo.grids import SMALL_TEXT, Rows, grid_images, in_order, timed_videos, video_grid
from tokenflex.testing.zoo.qwen import section
from tokenflex.testing.zoo.recipe import END, IMAGE, START, VIDEO, WORD, Images, TinyHost, seeded

VIDEO_START, VIDEO_END = 12, 13
NAMES: dict[str, Any] = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END,
    "video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2, "image_size": 24,
    "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.2,
}  # fmt: skip
SPARSE: dict[str, Any] = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip


def _glm4v() -> Any:
    text = {**SMALL_TEXT, "rope_parameters": section((2, 1, 1))}
    config = transformers.Glm4vConfig(vision_config=TOWER, text_config=text, **NAMES)
    return seeded(lambda: transformers.Glm4vForConditionalGeneration(config))


def _glm4v_moe() -> Any:
    text = {**SMALL_TEXT, **SPARSE, "head_dim": 16, "rope_parameters": section((2, 1, 1), partial_rotary_factor=0.5)}
    config = transformers.Glm4vMoeConfig(vision_config=TOWER, text_config=text, **NAMES)
    return seeded(lambda: transformers.Glm4vMoeForConditionalGeneration(config))


def _as_glm46v(make: Any) -> Any:
    text = {**SMALL_TEXT, "model_type": "glm4v_text", "rope_parameters": section((2, 1, 1))}
    config = make(vision_config={**TOWER, "model_type": "glm4v_vision"}, text_config=text, **NAMES)
    return seeded(lambda: transformers.Glm46VForConditionalGeneration(config))


def _glm46v() -> Any:
    return _as_glm46v(transformers.Glm46VConfig)


def _glmga() -> Any:
    return _as_glm46v(transformers.GlmgaConfig)


def _glm_ocr() -> Any:
    text = {**SMALL_TEXT, "head_dim": 8, "rope_parameters": section((2, 1, 1))}
    config = transformers.GlmOcrConfig(vision_config=TOWER, text_config=text, **NAMES)
    return seeded(lambda: transformers.GlmOcrForConditionalGeneration(config))


def _glm5_next() -> Any:
    text = {
        **SMALL_TEXT, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 8, "qk_nope_head_dim": 8,
        "index_topk": 256, "index_kpool": 4, "index_head_dim": 8, "index_n_heads": 2, "linear_head_dim": 8,
        "linear_num_heads": 4, "hc_mult": 2, "hc_sinkhorn_iters": 4, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    }  # fmt: skip
    config = transformers.Glm5NextConfig(
        vision_config={**TOWER, "projection_intermediate_size": 32}, text_config=text, **NAMES
    )
    return seeded(lambda: transformers.Glm5NextForConditionalGeneration(config))


def framed_videos(config: Any, rows: Rows) -> Images:
    """Videos whose frames are runs of an image's placeholders, each with its time after it."""
    made = timed_videos(config, rows, placeholder=IMAGE)
    runs: list[tuple[int, ...]] = []
    for t, h, w in map(video_grid, in_order(rows)):
        frames = [(START, *(IMAGE,) * (h * w), END, WORD + at) for at in range(t)]
        runs.append((VIDEO_START, *(token for frame in frames for token in frame), VIDEO_END))
    return Images(made.inputs, tuple(runs))


def types(ids: Tensor) -> dict[str, Tensor]:
    """1 at placeholders of images, 2 at the same placeholders inside a video."""
    inside = (ids == VIDEO_START).cumsum(-1) > (ids == VIDEO_END).cumsum(-1)
    return {"mm_token_type_ids": torch.where(ids == IMAGE, 1 + inside.long(), 0)}


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("glm4v", _glm4v, grid_images, None, framed_videos, types),
    TinyHost("glm4v_moe", _glm4v_moe, grid_images, None, framed_videos, types),
    TinyHost("glm46v", _glm46v, grid_images, None, framed_videos, types),
    TinyHost("glmga", _glmga, grid_images, None, framed_videos, types),
    TinyHost("glm_ocr", _glm_ocr, grid_images, None, framed_videos, types),
    TinyHost("glm5_next", _glm5_next, grid_images, None, framed_videos, types),
)

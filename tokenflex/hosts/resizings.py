"""How every architecture's pictures are made smaller, or why they can't be, by ``model_type``."""

from collections.abc import Mapping
from typing import Any

from tokenflex.hosts.resized_patches import BY_ROW, CHANNELS_LAST, Patches
from tokenflex.hosts.resizing import Resizing

QWEN = Patches()
GLM = Patches(frames=2)

RESIZINGS: Mapping[str, Resizing] = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "qwen4_exp": QWEN,
    "qwen2_5_omni_thinker": QWEN,
    "qwen3_omni_moe_thinker": QWEN,
    "cosmos3_omni": QWEN,
    "cohere_compass": QWEN,
    "ernie4_5_vl_moe": QWEN,
    "exaone4_5": QWEN,
    "dots3_note": QWEN,
    "lfm3_vl": QWEN,
    "hyperclovax_vision_v2": QWEN,
    "minimax_m3_vl": QWEN,
    "video_llama_3": QWEN,
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "glm46v": GLM,
    "glm_ocr": GLM,
    "cosmos3_edge": Patches(numbers=CHANNELS_LAST, frames=2),
    "hunyuan_vl": Patches(order=BY_ROW),
    "hy_v4_vl": Patches(order=BY_ROW),
    "paddleocr_vl": Patches(order=BY_ROW),
}
"""Compared with transformers' processors."""

ANOTHER_RULE = "its processor has a rule of its own for sizes, which isn't known here"
REFUSALS: Mapping[str, str] = {}
"""As clauses."""


def resizing_of(config: Any) -> Resizing | str:
    """How, or why not, as a clause."""
    found = RESIZINGS.get(config.model_type)
    if found is None:
        return REFUSALS.get(config.model_type, ANOTHER_RULE)
    return found.refusal(config) or found

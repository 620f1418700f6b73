"""How every architecture's images are made smaller, or why they can't be, by ``model_type``."""

from collections.abc import Mapping
from typing import Any

from tokenflex.hosts import resized_tiles
from tokenflex.hosts.resized_canvas import Canvas
from tokenflex.hosts.resized_patches import BY_ROW, CHANNELS_LAST, Patches
from tokenflex.hosts.resized_views import Padded, Placed, Squares
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
    "glmga": GLM,
    "glm_ocr": GLM,
    "cosmos3_edge": Patches(numbers=CHANNELS_LAST),
    "hunyuan_vl": Patches(order=BY_ROW),
    "hy_v4_vl": Patches(order=BY_ROW),
    "paddleocr_vl": Patches(order=BY_ROW),
    "nemotron_h_omni": Patches(order=BY_ROW, limit=False),
    "mistral3": Padded(),
    "mistral_large4": Padded(),
    "lighton_ocr": Padded(),
    "gemma4": Placed(),
    "gemma4_unified": Placed(pooled=False),
    "llava": Squares(),
    "vipllava": Squares(),
    "video_llava": Squares(),
    "paligemma": Squares(),
    "janus": Squares(),
    "deepseek_vl": Squares(),
    "internvl": Canvas(),
    "qianfan_ocr": Canvas(),
    "got_ocr2": Canvas(),
}
"""Compared with transformers' processors."""

ANOTHER_RULE = "its processor has a rule of its own for sizes, which isn't known here"
TILE_TEXT = "its processor writes text around every tile of an image, and a smaller image has other text"
FIXED = "its vision tower takes images of one size only"
LEARNED = "its projector was made for one number of patches"
REFUSALS: Mapping[str, str] = {
    "aya_vision": TILE_TEXT,
    "cohere2_vision": TILE_TEXT,
    "idefics2": "learned queries read every view, so a smaller image has as many tokens as a larger one",
    "idefics3": TILE_TEXT,
    "smolvlm": TILE_TEXT,
    "ovis2": TILE_TEXT,
    "granite_docling": TILE_TEXT,
    "step3p7": TILE_TEXT,
    "lfm2_vl": TILE_TEXT,
    "minicpmv4_6": TILE_TEXT,
    "minicpm_ocr": TILE_TEXT,
    "minicpmv4_7": TILE_TEXT,
    "molmo2": TILE_TEXT,
    "unlimited_ocr": "its pages and crops have sizes of their own, which a smaller image doesn't have",
    "gemma3": LEARNED,
    "shieldgemma2": LEARNED,
    "deepseek_vl_hybrid": "its second vision tower takes images of one size only",
    "pp_chart2table": FIXED,
    "perception_lm": "all images of a batch have equally many tiles",
    "fast_vlm": "how many pixels its vision tower makes a token of isn't told by its config",
    "tokenflex_composed": FIXED,
}
"""As clauses."""


def resizing_of(config: Any) -> Resizing | str:
    """How, or why not, as a clause."""
    found = RESIZINGS.get(config.model_type)
    if found is None:
        return REFUSALS.get(config.model_type, ANOTHER_RULE)
    return found.refusal(config) or found


def levels_of(model_type: str) -> tuple[str, str | None] | None:
    """(sizes that images of an architecture can have, the setting its processor has for them); None without any."""
    if model_type in resized_tiles.SERVED:
        return resized_tiles.LEVELS, None
    found = RESIZINGS.get(model_type)
    return None if found is None else (found.levels, found.setting)

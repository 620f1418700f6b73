"""Tiny hosts of the Qwen-Omni kind: they find images by the ids around them, and could hear as well."""

from typing import Any

import transformers

from tokenflex.testing.zoo.grids import SMALL_TEXT, grid_images
from tokenflex.testing.zoo.qwen import EXPERTS, VISION, newer_vision, section
from tokenflex.testing.zoo.recipe import END, IMAGE, START, VIDEO, TinyHost, seeded

AUDIO: dict[str, Any] = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16,
    "max_source_positions": 16, "n_window": 4, "output_dim": 32,
}  # fmt: skip
HEARD, HEARD_START, HEARD_END, USER = 12, 13, 14, 15
MORE: dict[str, Any] = {
    "audio_start_token_id": HEARD_START, "audio_end_token_id": HEARD_END, "user_token_id": USER,
    "vision_start_token_id": START, "vision_end_token_id": END, "initializer_range": 0.2,
}  # fmt: skip


def _qwen2_5_omni() -> Any:
    vision = {
        **VISION, "depth": 3, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {**SMALL_TEXT, "rope_parameters": section((2, 1, 1))}
    names = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": HEARD}
    config = transformers.Qwen2_5OmniThinkerConfig(
        vision_config=vision, text_config=text, audio_config=AUDIO, **names, **MORE
    )
    return seeded(lambda: transformers.Qwen2_5OmniThinkerForConditionalGeneration(config))


def _qwen3_omni_moe() -> Any:
    rope = section((2, 2, 2), mrope_interleaved=True)
    text = {**SMALL_TEXT, **EXPERTS, "head_dim": 12, "rope_parameters": rope}
    vision = newer_vision(deepstack_visual_indexes=[0, 1])
    audio = {**AUDIO, "n_window_infer": 8, "conv_chunksize": 8, "downsample_hidden_size": 4}
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": HEARD}
    config = transformers.Qwen3OmniMoeThinkerConfig(
        vision_config=vision, text_config=text, audio_config=audio, **names, **MORE
    )
    return seeded(lambda: transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config))


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("qwen2_5_omni_thinker", _qwen2_5_omni, grid_images),
    TinyHost("qwen3_omni_moe_thinker", _qwen3_omni_moe, grid_images),
)

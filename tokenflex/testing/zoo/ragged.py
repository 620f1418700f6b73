"""Tiny hosts whose images are ragged grids of tokens, while the text model counts positions along one axis only."""

from typing import Any

import torch
import transformers

from tokenflex.testing.zoo.grids import IDS, SMALL_TEXT, Rows, grid, grid_images, in_order, patches, wrapped
from tokenflex.testing.zoo.recipe import IMAGE, VIDEO, Images, TinyHost, pixels, seeded

NAMES: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}
TOWER: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "initializer_range": 0.2,
}  # fmt: skip
WINDOWED: dict[str, Any] = {
    "depth": 3, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
    "window_size": 16, "fullatt_block_indexes": [1], "spatial_merge_size": 2, "temporal_patch_size": 2,
    "initializer_range": 0.2,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def _video_llama_3() -> Any:
    text = {**SMALL_TEXT, "model_type": "qwen2"}
    config = transformers.VideoLlama3Config(vision_config=TOWER, text_config=text, **NAMES)
    return seeded(lambda: transformers.VideoLlama3ForConditionalGeneration(config))


def images_merged_by_two(config: Any, rows: Rows) -> Images:
    """Images that say themselves how many patches are merged, as ``image_merge_sizes``."""
    numbers, width = in_order(rows), 3 * config.vision_config.patch_size**2
    made = patches([(1, *grid(n)) for n in numbers], numbers, 2, width)
    sizes = torch.full((len(numbers),), 2)
    inputs = {"pixel_values": made["values"], "image_grid_thw": made["grid_thw"], "image_merge_sizes": sizes}
    return Images(inputs, bare(rows))


def bare(rows: Rows) -> tuple[tuple[int, ...], ...]:
    """The placeholders of every image, with nothing around them."""
    return tuple((IMAGE,) * (h * w) for h, w in map(grid, in_order(rows)))


def bare_images(config: Any, rows: Rows) -> Images:
    """Images with nothing around their placeholders."""
    return Images(grid_images(config, rows).inputs, bare(rows))


def _exaone4_5() -> Any:
    text = {**SMALL_TEXT, "model_type": "exaone4", "sliding_window": 512}
    config = transformers.Exaone4_5_Config(
        vision_config={**WINDOWED, "num_key_value_heads": 2}, text_config=text, **NAMES
    )
    return seeded(lambda: transformers.Exaone4_5_ForConditionalGeneration(config))


def _dots3_note() -> Any:
    vision = {
        **TOWER, "moe_intermediate_size": 16, "spatial_merge_size": 2, "adapter_in_dim": 16, "adapter_out_dim": 32,
        "mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "feature_size": 16, "downsample_hidden_size": 4, "adapter_input_size": 16, "adapter_out_dim": 32,
    }  # fmt: skip
    text = {
        **SMALL_TEXT, **LATENT, "head_dim": 16, "index_topk": 256, "index_head_dim": 8, "index_n_heads": 2,
        "use_sliding_window": False, "shared_experts_intermediate_size": 16,
    }  # fmt: skip
    config = transformers.Dots3NoteConfig(
        vision_config=vision, text_config=text, audio_config=audio, image_token_id=IMAGE, video_token_id=VIDEO,
        audio_token_id=14,
    )  # fmt: skip
    return seeded(lambda: transformers.Dots3NoteForConditionalGeneration(config))


def _kimi_k25() -> Any:
    vision = {**TOWER, "pos_emb_height": 6, "pos_emb_width": 6}
    text = {**SMALL_TEXT, **LATENT, "model_type": "deepseek_v3"}
    config = transformers.Kimi_K25Config(
        vision_config=vision, text_config=text, projection_hidden_size=16, tie_word_embeddings=False, **IDS
    )
    return seeded(lambda: transformers.Kimi_K25ForConditionalGeneration(config))


def media_images(config: Any, rows: Rows) -> Images:
    """Images of square patches, merged by a kernel."""
    numbers, vision = in_order(rows), config.vision_config
    made = patches([(1, *grid(n)) for n in numbers], numbers, vision.merge_kernel_size[0], 3 * vision.patch_size**2)
    values = made["values"].reshape(-1, 3, vision.patch_size, vision.patch_size)
    runs = tuple(wrapped(*run) for run in bare(rows))
    return Images({"pixel_values": values, "image_grid_thw": made["grid_thw"]}, runs)


def _lfm3_vl() -> Any:
    vision = {**TOWER, "num_hidden_layers": 4, "num_key_value_heads": 2, "spatial_merge_size": 2}
    text = {**SMALL_TEXT, "model_type": "lfm3", "head_dim": 8, "num_hidden_layers": 5}
    config = transformers.Lfm3VlConfig(vision_config=vision, text_config=text, projector_hidden_size=16, **IDS)
    return seeded(lambda: transformers.Lfm3VlForConditionalGeneration(config))


def _hyperclovax() -> Any:
    text = {**SMALL_TEXT, "model_type": "hyperclovax"}
    vision = {**WINDOWED, "model_type": "qwen2_5_vl_vision"}
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config=vision, text_config=text, tie_word_embeddings=False, **NAMES
    )
    return seeded(lambda: transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config))


def _minimax_m3() -> Any:
    # No sparse layers: in generate they compare padded positions with unpadded ones, so padding changes the answer.
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": 24, "spatial_merge_size": 2, "temporal_patch_size": 2}
    text = {
        **SMALL_TEXT, "head_dim": 8, "rotary_dim": 4, "dense_intermediate_size": 32, "shared_intermediate_size": 16,
        "num_local_experts": 4, "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "layer_types": ["full_attention"] * 3,
    }  # fmt: skip
    names: dict[str, Any] = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = transformers.MiniMaxM3VLConfig(vision_config=vision, text_config=text, projector_hidden_size=32, **names)
    return seeded(lambda: transformers.MiniMaxM3SparseForConditionalGeneration(config))


MUSE_VISION: dict[str, Any] = {
    **TOWER, "num_hidden_layers": 3, "pos_emb_height": 6, "pos_emb_width": 6, "patch_temporal": 2, "merge_size": 2,
    "layer_types": ["window_attention", "full_attention", "window_attention"],
}  # fmt: skip
MUSE: dict[str, Any] = {**NAMES, "out_hidden_size": 64, "projector_hidden_size": 32}


def _muse_glimmer() -> Any:
    text = {**SMALL_TEXT, "head_dim": 8, "sliding_window": 512, "output_multiplier": 1.0}
    config = transformers.MuseGlimmerConfig(vision_config=MUSE_VISION, text_config=text, **MUSE)
    return seeded(lambda: transformers.MuseGlimmerForConditionalGeneration(config))


def _muse_spark() -> Any:
    text = {
        **SMALL_TEXT, "head_dim": 8, "sliding_window": 512, "moe_intermediate_size": 16, "num_local_experts": 4,
        "num_experts_per_tok": 2, "moe_hidden_size": 16, "output_multiplier": 1.0,
    }  # fmt: skip
    audio = {
        "patch_sizes": [4, 2], "hidden_sizes": [8, 16], "depths": [1, 1], "num_hidden_layers": 2,
        "out_hidden_size": 32,
    }  # fmt: skip
    config = transformers.MuseSparkConfig(
        vision_config=MUSE_VISION, text_config=text, audio_config=audio, audio_token_id=14, **MUSE
    )
    return seeded(lambda: transformers.MuseSparkForConditionalGeneration(config))


def doubled_frames(config: Any, rows: Rows) -> Images:
    """Images whose patches hold two frames."""
    numbers, vision = in_order(rows), config.vision_config
    width = 3 * vision.patch_temporal * vision.patch_size**2
    made = patches([(1, *grid(n)) for n in numbers], numbers, vision.merge_size, width)
    runs = tuple(wrapped(*run) for run in bare(rows))
    return Images({"pixel_values": made["values"], "image_grid_thw": made["grid_thw"]}, runs)


INKLING: dict[str, Any] = {
    **SMALL_TEXT, "unpadded_vocab_size": 64, "head_dim": 8, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 512, "d_rel": 4, "rel_extent": 16,
    "log_scaling_n_floor": 64, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_layers_per_attn_res_block": 1, "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
}  # fmt: skip
del INKLING["intermediate_size"]
INKLING_VISION: dict[str, Any] = {
    **TOWER, "layer_scale_init_value": 0.5, "spatial_merge_size": 2, "posemb_grid_size": 6,
    "projection_hidden_dim": 32, "text_hidden_size": 32,
}  # fmt: skip


def _inkling2() -> Any:
    config = transformers.Inkling2Config(vision_config=INKLING_VISION, text_config=INKLING, image_token_id=IMAGE)
    return seeded(lambda: transformers.Inkling2ForConditionalGeneration(config))


def _inkling2_loop() -> Any:
    loop = {"loop_layer_index_start": 1, "loop_layer_index_end": 2, "loop_num_passes": 2, "loop_gate_rank": 4}
    vision = {**INKLING_VISION, "model_type": "inkling2_vision"}
    config = transformers.Inkling2LoopConfig(
        vision_config=vision, text_config={**INKLING, **loop}, image_token_id=IMAGE
    )
    return seeded(lambda: transformers.Inkling2LoopForConditionalGeneration(config))


def merged_squares(config: Any, rows: Rows) -> Images:
    """One square of pixels per token, height x width x channels; the grid counts tokens, not patches."""
    numbers, vision = in_order(rows), config.vision_config
    side = vision.spatial_merge_size * vision.patch_size
    sizes = [grid(n) for n in numbers]
    values = torch.cat([pixels(n, h * w, side, side, 3) for n, (h, w) in zip(numbers, sizes, strict=True)])
    return Images({"pixel_values": values, "image_grid_thw": torch.tensor([(1, *s) for s in sizes])}, bare(rows))


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("video_llama_3", _video_llama_3, images_merged_by_two),
    TinyHost("exaone4_5", _exaone4_5, grid_images),
    TinyHost("dots3_note", _dots3_note, grid_images),
    TinyHost("kimi_k25", _kimi_k25, media_images),
    TinyHost("lfm3_vl", _lfm3_vl, grid_images),
    TinyHost("hyperclovax_vision_v2", _hyperclovax, grid_images),
    TinyHost("minimax_m3_vl", _minimax_m3, grid_images),
    TinyHost("muse_glimmer", _muse_glimmer, doubled_frames),
    TinyHost("muse_spark", _muse_spark, doubled_frames),
    TinyHost("inkling2", _inkling2, merged_squares),
    TinyHost("inkling2_loop", _inkling2_loop, merged_squares),
)

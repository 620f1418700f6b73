"""Tiny hosts that take flat patches of images at their own size, without three-dimensional places."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

from tokenflex.testing.zoo.llava import language_config
from tokenflex.testing.zoo.recipe import (
    BREAK,
    COLUMN,
    END,
    GLOBAL,
    IMAGE,
    ROW,
    START,
    VIDEO,
    VOCABULARY,
    WORD,
    Images,
    TinyHost,
    pixels,
    seeded,
)

PATCH = 2
GRIDS = ((4, 4), (4, 6), (6, 4), (8, 4))
"""Rows and columns of tokens of image n modulo their number."""


def _tower(**settings: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 64, "patch_size": PATCH, "initializer_range": 0.2,
    }  # fmt: skip
    return sizes | settings


def qwen3_5(**settings: Any) -> Any:
    """One layer with linear attention, one with full attention."""
    return language_config(
        Qwen3_5TextConfig, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, **settings,
    )  # fmt: skip


def _minicpm(name: str, **settings: Any) -> Callable[[], Any]:
    """Sixteen patches make a token: four after the first layer of the tower, four after the last."""
    special: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 0}

    def build() -> Any:
        config, model = (getattr(transformers, f"{name}{kind}") for kind in ("Config", "ForConditionalGeneration"))
        made = config(text_config=qwen3_5(), vision_config=_tower(), downsample_mode="16x", **special, **settings)
        return seeded(lambda: model(made))

    return build


_V4_7_MARKS: dict[str, Any] = {
    "image_start_id": START, "image_end_id": END, "slice_start_id": ROW, "slice_end_id": COLUMN, "newline_id": BREAK,
}  # fmt: skip


def _nemotron() -> Any:
    """One layer each of Mamba, attention and experts."""
    text = language_config(
        transformers.NemotronHConfig, layers_block_type=["mamba", "attention", "moe"], head_dim=8, ssm_state_size=8,
        mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=16, n_routed_experts=4, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, num_hidden_layers=3,
    )  # fmt: skip
    vision: dict[str, Any] = {
        "model_type": "radio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0,
        "patch_size": PATCH, "image_size": 32, "max_img_size": 32, "num_cls_tokens": 1, "num_registers": 1,
        "video_temporal_patch_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    settings: dict[str, Any] = {"projector_hidden_size": 32, "vision_hidden_size": 32, "audio_config": None}
    special: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    config = NemotronH_Omni_Reasoning_V3_Config(text_config=text, vision_config=vision, **settings, **special)
    return seeded(lambda: NemotronH_Omni_Reasoning_V3(config))


CROP = 8
"""Patches along the side of a crop of Molmo 2; two by two of them are pooled into a token."""


def _molmo2() -> Any:
    vision = _tower(num_key_value_heads=4, head_dim=8, image_size=[CROP * PATCH, CROP * PATCH])
    adapter: dict[str, Any] = {
        "vision_feature_layer": [-1, 0], "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 8, "intermediate_size": 48, "text_hidden_size": 32, "initializer_range": 0.2,
    }  # fmt: skip
    special: dict[str, Any] = {
        "image_start_token_id": START, "low_res_image_start_token_id": GLOBAL, "image_end_token_id": END,
        "image_patch_id": IMAGE, "frame_start_token_id": ROW, "frame_end_token_id": BREAK,
    }  # fmt: skip
    text = language_config(dict, head_dim=8, additional_vocab_size=8)
    configs: dict[str, Any] = {"text_config": text, "vision_config": vision, "adapter_config": adapter}
    config = transformers.Molmo2Config(**configs, initializer_range=0.2, **special)
    return seeded(lambda: transformers.Molmo2ForConditionalGeneration(config))


def molmo2_types(ids: Tensor) -> dict[str, Tensor]:
    """One at placeholders and at the marks around and between them: all of these see each other."""
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, START, GLOBAL, END, COLUMN])).long()}


def _inkling() -> Any:
    """No attention between patches: each is folded into a token of its own."""
    text = language_config(
        dict, head_dim=8, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, sliding_window_size=64,
        d_rel=4, rel_extent=64, layer_types=["hybrid_sliding", "hybrid"], mlp_layer_types=["dense", "sparse"],
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        logits_mup_width_multiplier=1.0, unpadded_vocab_size=VOCABULARY,
    )  # fmt: skip
    vision: dict[str, Any] = {"text_hidden_size": 32, "patch_size": 4, "num_hidden_layers": 2, "hidden_size": 32}
    audio: dict[str, Any] = {"text_hidden_size": 32, "n_mel_bins": 4, "mel_vocab_size": 8}
    config = transformers.InklingConfig(
        text_config=text, vision_config=vision, audio_config=audio, image_token_id=IMAGE
    )
    return seeded(lambda: transformers.InklingForConditionalGeneration(config))


def _numbers(rows: Sequence[Sequence[int]]) -> list[int]:
    return [number for row in rows for number in row]


def sliced(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """The image; odd ones also as two slices in a row. All patches lie side by side in one long strip."""
    sizes: list[tuple[int, int]] = []
    runs: list[tuple[int, ...]] = []
    strips: list[Tensor] = []
    for number in _numbers(rows):
        views = [GRIDS[number % len(GRIDS)]] + [(4, 4), (4, 4)] * (number % 2)
        sizes += [(4 * height, 4 * width) for height, width in views]
        strips.append(pixels(number, 1, 3, PATCH, PATCH * sum(16 * height * width for height, width in views)))
        first, *slices = ((IMAGE,) * (height * width) for height, width in views)
        inner = [token for run in slices for token in (ROW, *run, COLUMN)]
        runs.append((WORD, START, *first, END, *inner))
    inputs = {"pixel_values": torch.cat(strips, -1), "target_sizes": torch.tensor(sizes, dtype=torch.int32)}
    return Images(inputs, tuple(runs))


def merged(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """Two by two patches make a token."""
    grids = [GRIDS[number % len(GRIDS)] for number in _numbers(rows)]
    values = [pixels(n, 4 * h * w, 3 * PATCH**2) for n, (h, w) in zip(_numbers(rows), grids, strict=True)]
    inputs = {"pixel_values": torch.cat(values), "image_grid_hw": 2 * torch.tensor(grids)}
    return Images(inputs, tuple((START, *(IMAGE,) * (h * w), END) for h, w in grids))


def pooled(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """A crop for the whole image and one or two side by side, with the patches that each token pools."""
    crops = [1 + number % 2 for number in _numbers(rows)]
    half = CROP // 2
    square = torch.arange(CROP**2).reshape(half, 2, half, 2).permute(0, 2, 1, 3).reshape(half, half, 4)
    tables: list[Tensor] = []
    for before, count in zip([sum(crops[:i]) + i for i in range(len(crops))], crops, strict=True):
        tables.append(square.reshape(-1, 4) + CROP**2 * before)
        side_by_side = [square + CROP**2 * (before + 1 + i) for i in range(count)]
        tables.append(torch.cat(side_by_side, 1).reshape(-1, 4))
    values = [pixels(n, 1 + c, CROP**2, 3 * PATCH**2) for n, c in zip(_numbers(rows), crops, strict=True)]
    inputs = {
        "pixel_values": torch.cat(values),
        "image_token_pooling": torch.cat(tables),
        "image_grids": torch.tensor([[half, half, half, half * count] for count in crops]),
        "image_num_crops": torch.tensor(crops) + 1,
    }
    overview = (GLOBAL, *(IMAGE,) * half**2, END)
    runs = ((*overview, START, *(*(IMAGE,) * (half * count), COLUMN) * half, END) for count in crops)
    return Images(inputs, tuple(runs))


def folded(config: Any, rows: Sequence[Sequence[int]]) -> Images:
    """A patch of two equal frames per token; nothing tells the sides of the grid."""
    side, grids = config.vision_config.patch_size, [GRIDS[number % len(GRIDS)] for number in _numbers(rows)]
    patches = [pixels(n, h * w, 1, side, side, 3) for n, (h, w) in zip(_numbers(rows), grids, strict=True)]
    runs = tuple((IMAGE,) * (h * w) for h, w in grids)
    return Images({"pixel_values": torch.cat(patches).repeat(1, 2, 1, 1, 1)}, runs)


HOSTS: tuple[TinyHost, ...] = (
    TinyHost("minicpmv4_6", _minicpm("MiniCPMV4_6"), sliced),
    TinyHost("minicpm_ocr", _minicpm("MiniCPMOcr"), sliced),
    TinyHost("minicpmv4_7", _minicpm("MiniCPMV4_7", **_V4_7_MARKS), sliced, token_types="mm_token_type_ids"),
    TinyHost("nemotron_h_omni", _nemotron, merged),
    TinyHost("molmo2", _molmo2, pooled, more_types=molmo2_types),
    TinyHost("inkling_mm_model", _inkling, folded),
)

"""Architectures whose images are square grids of fixed size: one per image, or one per tile.

Grid formulas and paths were read off transformers' modelling code and compared with what its encoders return.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from tokenflex.contracts import Grid
from tokenflex.hosts.architecture import Architecture, Inputs, Modality, Unit

Side = Callable[[Any], int]
Shown = Bool[Tensor, "rows length"]
Units = Callable[[Any, Inputs, Shown], Sequence[Unit]]
LLAVA_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")
TOWER, PROJECTOR = ("model.vision_tower",), ("model.multi_modal_projector",)


def run_lengths(shown: Shown) -> list[int]:
    """Lengths of the runs of placeholders, in batch order."""
    steps = np.diff(np.pad(shown.numpy().astype(np.int8), ((0, 0), (1, 1))), axis=1)
    begins, ends = np.nonzero(steps == 1), np.nonzero(steps == -1)
    return (ends[1] - begins[1]).tolist()


def filled(grid: Callable[[Any], Grid]) -> Units:
    """Every so many placeholders are one grid, whether text tokens lie between them or not."""

    def units(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
        unit = Unit(grid=grid(config))
        return [unit] * math.ceil(int(shown.sum()) / unit.placeholders)

    return units


def squares(side: Side) -> Units:
    """Every so many placeholders are one square."""
    return filled(lambda config: Grid(side(config), side(config)))


def tiles_in_a_run(side: Side) -> Units:
    """Each run of placeholders is one image, its squares one after the other."""

    def units(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
        grid = Grid(side(config), side(config))
        return [Unit(grid=grid, views=math.ceil(length / grid.tokens)) for length in run_lengths(shown)]

    return units


def alike(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
    """Images (of ``tiles`` each, if pixels say so) share the placeholders equally, for towers of unknown stride."""
    pixels = inputs["pixel_values"]
    views = pixels.shape[1] if pixels.dim() == 5 else 1
    side = math.isqrt(int(shown.sum()) // (len(pixels) * views))
    return [Unit(grid=Grid(side, side), views=views)] * len(pixels)


def square_runs(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
    """Each run of placeholders is a square of its own size."""
    return [Unit(grid=Grid(math.isqrt(length), math.isqrt(length))) for length in run_lengths(shown)]


def declared_grid(config: Any) -> Grid:
    """(rows, columns) as the config has them."""
    return Grid(*config.grid)


def latents(config: Any) -> Grid:
    """Learned queries lie on no grid; those of a view count as one row, in their order."""
    return Grid(1, config.perceiver_config.resampler_n_latents)


def _int(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else int(value[0])


def patches(config: Any) -> int:
    """Patches along a side of the tower's image."""
    return _int(config.vision_config.image_size) // _int(config.vision_config.patch_size)


def by_factor(config: Any) -> int:
    """Patches merged by ``downsample_factor``."""
    return patches(config) // config.downsample_factor


def by_ratio(config: Any) -> int:
    """Patches merged by ``downsample_ratio`` < 1."""
    return int(patches(config) * config.downsample_ratio)


def by_scale(config: Any) -> int:
    """Patches merged by ``scale_factor``."""
    return patches(config) // config.scale_factor


def by_two_convolutions(config: Any) -> int:
    """Patches halved twice."""
    return math.ceil(math.ceil(patches(config) / 2) / 2)


def of_gemma3(config: Any) -> int:
    """Fixed tokens per image."""
    return math.isqrt(config.mm_tokens_per_image)


def of_ovis2(config: Any) -> int:
    """Patches merged by the tower's stride."""
    return math.ceil(patches(config) / config.vision_config.hidden_stride)


def usual(config: Any) -> int:
    """For towers of unknown stride: the side of 256 tokens."""
    return 16


def without_class_token(config: Any) -> str | None:
    """Class tokens lie on no grid."""
    if getattr(config, "vision_feature_select_strategy", "default") == "full":
        return "vision_feature_select_strategy='full' keeps the class token, which lies on no grid"
    return None


def llava_refusal(config: Any) -> str | None:
    """Pixtral towers give LLaVA images of any size."""
    if config.vision_config.model_type == "pixtral":
        return "its tower is Pixtral's, whose images have any size; only LLaVA with square images is served"
    return without_class_token(config)


def square(
    side: Side,
    units: Units | None = None,
    *,
    inputs: tuple[str, ...] = (),
    vision_tower: tuple[str, ...] = TOWER,
    projector: tuple[str, ...] = PROJECTOR,
    flat: bool = True,
    **more: Any,
) -> Architecture:
    """An architecture with one kind of square."""
    return Architecture(
        family="square",
        modalities=(Modality(units=units or squares(side), inputs=inputs),),
        canonical=lambda config: Grid(side(config), side(config)),
        vision_tower=vision_tower,
        projector=projector,
        flat=flat,
        **more,
    )


ALIGNER: dict[str, Any] = {"vision_tower": ("model.vision_model",), "projector": ("model.aligner",)}
HYBRID = tuple(f"model.{name}" for name in ("vision_model", "high_res_vision_model", "high_res_vision_neck"))
HYBRID_PROJECTOR = ("model.aligner", "model.high_res_vision_proj", "model.high_res_vision_alpha")
ROWS_OF_TILES: dict[str, Any] = {
    "vision_tower": ("model.vision_model",),
    "projector": ("model.connector",),
    "flat": False,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llava": square(patches, inputs=(*LLAVA_OPTIONS, "image_sizes"), flat=False, refusal=llava_refusal),
    "vipllava": square(patches, inputs=LLAVA_OPTIONS[:1]),
    "video_llava": square(
        patches, inputs=LLAVA_OPTIONS, vision_tower=("model.image_tower", "model.video_tower"),
        refusal=without_class_token,
    ),
    "aya_vision": square(by_factor, inputs=LLAVA_OPTIONS),
    "cohere2_vision": square(by_factor),
    "internvl": square(by_ratio, tiles_in_a_run(by_ratio), inputs=LLAVA_OPTIONS),
    "qianfan_ocr": square(by_ratio, tiles_in_a_run(by_ratio), inputs=LLAVA_OPTIONS),
    "got_ocr2": square(by_two_convolutions, tiles_in_a_run(by_two_convolutions)),
    "pp_chart2table": square(by_two_convolutions, tiles_in_a_run(by_two_convolutions)),
    "fast_vlm": square(usual, alike, inputs=LLAVA_OPTIONS),
    "gemma3": square(of_gemma3),
    "shieldgemma2": square(of_gemma3),
    "paligemma": square(patches),
    "deepseek_vl": square(patches, **ALIGNER),
    "deepseek_vl_hybrid": square(
        patches, inputs=("high_res_pixel_values",), vision_tower=HYBRID, projector=HYBRID_PROJECTOR
    ),
    "janus": square(patches, **ALIGNER),
    "perception_lm": square(usual, alike),
    "idefics2": Architecture(
        family="latents", modalities=(Modality(units=filled(latents), inputs=("pixel_attention_mask",)),),
        canonical=latents,
        vision_tower=("model.vision_model",), projector=("model.connector",),
    ),
    "idefics3": square(by_scale, inputs=("pixel_attention_mask",), **ROWS_OF_TILES),
    "smolvlm": square(by_scale, inputs=("pixel_attention_mask",), **ROWS_OF_TILES),
    "ovis2": square(of_ovis2, mark_field="visual_indicator_features", projector=("model.visual_embeddings_table",)),
    "granite_docling": square(
        lambda config: patches(config) // config.vision_config.scale_factor, square_runs,
        inputs=("pixel_attention_mask", "tile_fine_mask"), vision_tower=("model.vision_model",),
        projector=("model.vision_model.connector",), flat=False,
    ),
    "step3p7": square(
        by_two_convolutions, square_runs, inputs=("pixel_values_local", "num_local_patches"),
        vision_tower=("model.vision_model",), flat=False,
    ),
    "tokenflex_composed": Architecture(
        family="composed", modalities=(Modality(units=filled(declared_grid)),), canonical=declared_grid,
        vision_tower=("vision_tower",), projector=("multi_modal_projector",),
    ),
}  # fmt: skip
"""By ``model_type``."""

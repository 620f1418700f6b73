"""Architectures whose images are square grids of fixed size: one per image, or one per tile.

Grid formulas and paths were read off transformers' modelling code and compared with what its encoders return.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenflex.contracts import Grid
from tokenflex.hosts.architecture import BLOCKS, PREFIX, TILE_TEXT, Architecture
from tokenflex.hosts.layouts import GridLayout
from tokenflex.hosts.modality import Inputs, Layouts, Modality, Shown
from tokenflex.hosts.resized_canvas import Canvas
from tokenflex.hosts.resized_views import Squares

Side = Callable[[Any], int]
LLAVA_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")
TOWER, PROJECTOR = ("model.vision_tower",), ("model.multi_modal_projector",)


def run_lengths(shown: Shown) -> list[int]:
    """Lengths of the runs of placeholders, in batch order."""
    steps = np.diff(np.pad(shown.numpy().astype(np.int8), ((0, 0), (1, 1))), axis=1)
    begins, ends = np.nonzero(steps == 1), np.nonzero(steps == -1)
    return (ends[1] - begins[1]).tolist()


def filled(grid: Callable[[Any], Grid]) -> Layouts:
    """Every so many placeholders are one grid, whether text tokens lie between them or not."""

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
        layout = GridLayout(grid=grid(config))
        return [layout] * math.ceil(int(shown.sum()) / layout.placeholders)

    return layouts


def squares(side: Side) -> Layouts:
    """Every so many placeholders are one square."""
    return filled(lambda config: Grid(side(config), side(config)))


def tiles_in_a_run(side: Side) -> Layouts:
    """Each run of placeholders is one image, its squares one after the other."""

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
        grid = Grid(side(config), side(config))
        return [GridLayout(grid=grid, views=math.ceil(length / grid.tokens)) for length in run_lengths(shown)]

    return layouts


def alike(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Images (of ``tiles`` each, if pixels say so) share the placeholders equally, for towers of unknown stride."""
    pixels = inputs["pixel_values"]
    views = pixels.shape[1] if pixels.dim() == 5 else 1
    side = math.isqrt(int(shown.sum()) // (len(pixels) * views))
    return [GridLayout(grid=Grid(side, side), views=views)] * len(pixels)


def square_runs(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Each run of placeholders is a square of its own size."""
    return [GridLayout(grid=Grid(math.isqrt(length), math.isqrt(length))) for length in run_lengths(shown)]


def declared_grid(config: Any) -> Grid:
    """The grid that the config names, as (rows, columns)."""
    return Grid(*config.grid)


def latents(config: Any) -> Grid:
    """Learned queries lie on no grid; those of a view count as one row, in their order."""
    return Grid(1, config.perceiver_config.resampler_n_latents)


def _int(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else int(value[0])


def patches(config: Any) -> int:
    """The number of patches along a side of the tower's image."""
    return _int(config.vision_config.image_size) // _int(config.vision_config.patch_size)


def by_factor(config: Any) -> int:
    """Tokens along a side, where ``downsample_factor`` patches become one."""
    return patches(config) // config.downsample_factor


def by_ratio(config: Any) -> int:
    """Tokens along a side, where a patch becomes ``downsample_ratio`` < 1 tokens."""
    return int(patches(config) * config.downsample_ratio)


def by_scale(config: Any) -> int:
    """Tokens along a side, where ``scale_factor`` patches become one."""
    return patches(config) // config.scale_factor


def by_two_convolutions(config: Any) -> int:
    """Tokens along a side, where two convolutions halve the patches twice."""
    return math.ceil(math.ceil(patches(config) / 2) / 2)


def of_gemma3(config: Any) -> int:
    """Tokens along a side, of the fixed number per image that the config names."""
    return math.isqrt(config.mm_tokens_per_image)


def of_ovis2(config: Any) -> int:
    """Tokens along a side, where the tower's stride of patches becomes one."""
    return math.ceil(patches(config) / config.vision_config.hidden_stride)


def usual(config: Any) -> int:
    """Tokens along a side of 256, for towers whose stride isn't told."""
    return 16


def without_class_token(config: Any) -> str | None:
    """Refuse checkpoints that keep the class token, which lies on no grid."""
    if getattr(config, "vision_feature_select_strategy", "default") == "full":
        return "vision_feature_select_strategy='full' keeps the class token, which lies on no grid"
    return None


def llava_refusal(config: Any) -> str | None:
    """Refuse checkpoints with Pixtral's tower, whose images have any size."""
    if config.vision_config.model_type == "pixtral":
        return "its tower is Pixtral's, whose images have any size; only LLaVA with square images is served"
    return without_class_token(config)


def square(
    side: Side,
    layouts: Layouts | None = None,
    *,
    inputs: tuple[str, ...] = (),
    vision_tower: tuple[str, ...] = TOWER,
    projector: tuple[str, ...] = PROJECTOR,
    flat: bool = True,
    **more: Any,
) -> Architecture:
    """An architecture with one kind of square.

    Args:
        side: tokens along a side, from the config.
        layouts: how images lie; None: one square each.
        inputs: of the encoder, besides pixels.
    """
    return Architecture(
        family="square",
        modalities=(Modality(layouts=layouts or squares(side), inputs=inputs),),
        canonical=lambda config: Grid(side(config), side(config)),
        vision_tower=vision_tower,
        projector=projector,
        flat=flat,
        **more,
    )


FIXED = "its vision tower takes images of one size only"
LEARNED = "its projector was made for one number of patches"
READ: dict[str, Any] = {"attention_refusal": None}
INTERPOLATED: dict[str, Any] = {"resizing": Squares()}
ALIGNER: dict[str, Any] = {
    "vision_tower": ("model.vision_model",), "projector": ("model.aligner",), **READ, **INTERPOLATED,
}  # fmt: skip
HYBRID = tuple(f"model.{name}" for name in ("vision_model", "high_res_vision_model", "high_res_vision_neck"))
HYBRID_PROJECTOR = ("model.aligner", "model.high_res_vision_proj", "model.high_res_vision_alpha")
ROWS_OF_TILES: dict[str, Any] = {
    "inputs": ("pixel_attention_mask",), "vision_tower": ("model.vision_model",), "projector": ("model.connector",),
    "flat": False, "resizing": TILE_TEXT, **READ,
}  # fmt: skip
GEMMA3: dict[str, Any] = {"resizing": LEARNED, "packing_refusal": BLOCKS, **READ}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llava": square(
        patches, inputs=(*LLAVA_OPTIONS, "image_sizes"), flat=False, refusal=llava_refusal, **READ, **INTERPOLATED
    ),
    "vipllava": square(patches, inputs=LLAVA_OPTIONS[:1], **READ, **INTERPOLATED),
    "video_llava": square(
        patches, inputs=LLAVA_OPTIONS, vision_tower=("model.image_tower", "model.video_tower"),
        refusal=without_class_token, **INTERPOLATED,
    ),
    "aya_vision": square(by_factor, inputs=LLAVA_OPTIONS, resizing=TILE_TEXT, **READ),
    "cohere2_vision": square(by_factor, resizing=TILE_TEXT, **READ),
    "internvl": square(by_ratio, tiles_in_a_run(by_ratio), inputs=LLAVA_OPTIONS, resizing=Canvas(), **READ),
    "qianfan_ocr": square(by_ratio, tiles_in_a_run(by_ratio), inputs=LLAVA_OPTIONS, resizing=Canvas()),
    "got_ocr2": square(by_two_convolutions, tiles_in_a_run(by_two_convolutions), resizing=Canvas()),
    "pp_chart2table": square(by_two_convolutions, tiles_in_a_run(by_two_convolutions), resizing=FIXED),
    "fast_vlm": square(
        usual, alike, inputs=LLAVA_OPTIONS,
        resizing="how many pixels its vision tower makes a token of isn't told by its config",
    ),
    "gemma3": square(of_gemma3, **GEMMA3),
    "shieldgemma2": square(of_gemma3, **GEMMA3),
    "paligemma": square(patches, packing_refusal=BLOCKS, looks_ahead=PREFIX, **READ, **INTERPOLATED),
    "deepseek_vl": square(patches, **ALIGNER),
    "deepseek_vl_hybrid": square(
        patches, inputs=("high_res_pixel_values",), vision_tower=HYBRID, projector=HYBRID_PROJECTOR,
        resizing="its second vision tower takes images of one size only",
    ),
    "janus": square(patches, **ALIGNER),
    "perception_lm": square(usual, alike, resizing="all images of a batch have equally many tiles", **READ),
    "idefics2": Architecture(
        family="latents", modalities=(Modality(layouts=filled(latents), inputs=("pixel_attention_mask",)),),
        canonical=latents, vision_tower=("model.vision_model",), projector=("model.connector",),
        resizing="learned queries read every view, so a smaller image has as many tokens as a larger one",
    ),
    "idefics3": square(by_scale, **ROWS_OF_TILES),
    "smolvlm": square(by_scale, **ROWS_OF_TILES),
    "ovis2": square(
        of_ovis2, mark_field="visual_indicator_features", projector=("model.visual_embeddings_table",),
        resizing=TILE_TEXT,
    ),
    "granite_docling": square(
        lambda config: patches(config) // config.vision_config.scale_factor, square_runs,
        inputs=("pixel_attention_mask", "tile_fine_mask"), vision_tower=("model.vision_model",),
        projector=("model.vision_model.connector",), flat=False, resizing=TILE_TEXT,
    ),
    "step3p7": square(
        by_two_convolutions, square_runs, inputs=("pixel_values_local", "num_local_patches"),
        vision_tower=("model.vision_model",), flat=False, resizing=TILE_TEXT,
    ),
    "tokenflex_composed": Architecture(
        family="composed", modalities=(Modality(layouts=filled(declared_grid)),), canonical=declared_grid,
        vision_tower=("vision_tower",), projector=("multi_modal_projector",), resizing=FIXED,
    ),
}  # fmt: skip
"""The rows of this family, by ``model_type``."""

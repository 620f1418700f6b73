"""Architectures whose images have grids of any size, said by an input, and plain positions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenflex.contracts import Grid
from tokenflex.hosts.architecture import PREFIX, TILE_TEXT, Architecture
from tokenflex.hosts.layouts import GridLayout
from tokenflex.hosts.modality import Inputs, Layouts, Modality, Shown
from tokenflex.hosts.resized_patches import BY_ROW, Patches
from tokenflex.hosts.resized_views import Padded, Placed
from tokenflex.hosts.square import PROJECTOR, TOWER, run_lengths

USUAL = Grid(24, 24)


def by_image_sizes(config: Any, inputs: Inputs, shown: Shown, *, rows: bool = False) -> Sequence[GridLayout]:
    """Pixtral's: ``image_sizes`` in pixels; with ``rows``, a word behind each row of tokens."""
    cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    runs = "rows" if rows else "whole"
    return [GridLayout(grid=Grid(h // cell, w // cell), runs=runs) for h, w in inputs["image_sizes"].tolist()]


def in_rows(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Rows of tokens with a break behind each, an end behind the last."""
    return by_image_sizes(config, inputs, shown, rows=True)


def by_spatial_shapes(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Every view is an image of its own, of the size that ``spatial_shapes`` gives in patches."""
    factor = config.downsample_factor
    return [GridLayout(grid=Grid(h // factor, w // factor)) for h, w in inputs["spatial_shapes"].tolist()]


def by_positions(pool: bool) -> Layouts:
    """The largest ``image_position_ids`` (x, y) of each image, in patches or (without ``pool``) in tokens."""

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
        cell = config.vision_config.pooling_kernel_size if pool else 1
        sides = (inputs["image_position_ids"].amax(1) + 1) // cell
        return [GridLayout(grid=Grid(height, width)) for width, height in sides.tolist()]

    return layouts


def by_target_sizes(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """One image per view, its ``target_sizes`` in patches, merged by 4 or, in mode 4x, by 2."""
    mode = inputs.get("downsample_mode") or getattr(config, "downsample_mode", None) or "16x"
    cell = (4 if mode == "16x" else 2) * config.merge_kernel_size[0] ** (max(config.merger_times, 1) - 1)
    return [GridLayout(grid=Grid(height // cell, width // cell)) for height, width in inputs["target_sizes"].tolist()]


def by_grid_hw(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Every image has the size that ``image_grid_hw`` gives in patches."""
    ratio = config.downsample_ratio
    return [GridLayout(grid=Grid(int(h * ratio), int(w * ratio))) for h, w in inputs["image_grid_hw"].tolist()]


def overview_and_detail(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Molmo's: ``image_grids`` (rows, cols of the overview, of the detail) in tokens, maybe a mark behind each row."""
    grids = [Grid(*pair) for four in inputs["image_grids"].tolist() for pair in (four[:2], four[2:])]
    found: list[GridLayout] = []
    lengths = iter(run_lengths(shown))
    for grid in grids:
        in_lines = next(lengths, 0) == grid.cols != grid.tokens
        for _ in range(grid.rows - 1 if in_lines else 0):
            next(lengths, 0)
        found.append(GridLayout(grid=grid, runs="rows" if in_lines else "whole"))
    return found


def canvas_and_page(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """Crops joined to one canvas, then the whole page; a newline behind each row, a separator at the end."""
    patch = config.vision_config.sam_config.patch_size

    def side(pixels: Any) -> int:
        return math.ceil(pixels.shape[-1] // patch / 4)

    page = side(inputs["pixel_values"])
    found: list[GridLayout] = []
    crops, shapes = inputs.get("num_local_patches"), inputs.get("patches_grid")
    for number in range(len(inputs["pixel_values"])):
        if shapes is not None and crops is not None and crops[number]:
            cols, rows = (int(n) for n in shapes[number])
            local = side(inputs["pixel_values_local"])
            found.append(GridLayout(grid=Grid(rows * local, cols * local), newline=True))
        found.append(GridLayout(grid=Grid(page, page), newline=True, end=1))
    return found


def ragged(
    layouts: Layouts,
    *,
    inputs: tuple[str, ...] = (),
    sizes: tuple[str, ...] = (),
    grids: str | None = None,
    vision_tower: tuple[str, ...] = TOWER,
    projector: tuple[str, ...] = PROJECTOR,
    **more: Any,
) -> Architecture:
    """An architecture with one kind of image.

    Args:
        layouts: how images lie.
        inputs: of the encoder, besides pixels.
        sizes: those of them that tell of sizes.
        grids: input of sizes in patches that positions are computed from.
    """
    return Architecture(
        family="ragged",
        modalities=(Modality(layouts=layouts, inputs=inputs, sizes=sizes, grids=grids),),
        canonical=lambda config: USUAL,
        vision_tower=vision_tower,
        projector=projector,
        **more,
    )


PIXTRAL = ("image_sizes", "vision_feature_layer")
PLACED = ("image_position_ids",)
SLICED: dict[str, Any] = {"projector": ("model.merger",), "resizing": TILE_TEXT}
TARGETS: dict[str, Any] = {"inputs": ("target_sizes", "downsample_mode"), "sizes": ("target_sizes",), **SLICED}
OCR_CROPS = ("pixel_values_local", "num_local_patches", "patches_grid")
MOLMO = ("image_token_pooling", "image_grids", "image_num_crops")

ARCHITECTURES: Mapping[str, Architecture] = {
    "mistral3": ragged(in_rows, inputs=PIXTRAL, sizes=PIXTRAL[:1], resizing=Padded()),
    "mistral_large4": ragged(in_rows, inputs=PIXTRAL, sizes=PIXTRAL[:1], resizing=Padded()),
    "lighton_ocr": ragged(
        by_image_sizes, inputs=PIXTRAL[:1], sizes=PIXTRAL[:1], vision_tower=("model.vision_encoder",),
        projector=("model.vision_projection",), resizing=Padded(),
    ),
    "lfm2_vl": ragged(
        by_spatial_shapes, inputs=("spatial_shapes", "pixel_attention_mask"), sizes=("spatial_shapes",),
        resizing=TILE_TEXT,
    ),
    "gemma4": ragged(
        by_positions(pool=True), inputs=PLACED, sizes=PLACED, projector=("model.embed_vision",), resizing=Placed()
    ),
    "gemma4_unified": ragged(
        by_positions(pool=False), inputs=PLACED, sizes=PLACED, vision_tower=(), projector=("model.embed_vision",),
        resizing=Placed(pooled=False),
    ),
    "minicpmv4_6": ragged(by_target_sizes, **TARGETS),
    "minicpm_ocr": ragged(by_target_sizes, **TARGETS),
    "minicpmv4_7": ragged(
        by_target_sizes, inputs=("downsample_mode",), grids="target_sizes", rotary=True, types="mm_token_type_ids",
        **SLICED,
    ),
    "nemotron_h_omni": ragged(
        by_grid_hw, inputs=("image_grid_hw",), sizes=("image_grid_hw",), vision_tower=("vision_model",),
        projector=("multi_modal_projector",), resizing=Patches(order=BY_ROW, limit=False),
    ),
    "molmo2": ragged(
        overview_and_detail, inputs=MOLMO, sizes=MOLMO[1:2], resizing=TILE_TEXT, looks_ahead=PREFIX
    ),
    "unlimited_ocr": ragged(
        canvas_and_page, inputs=OCR_CROPS, sizes=OCR_CROPS[1:],
        projector=("model.multi_modal_projector", "model.image_newline", "model.view_separator"),
        resizing="its pages and crops have sizes of their own, which a smaller image doesn't have",
    ),
}  # fmt: skip
"""The rows of this family, by ``model_type``."""

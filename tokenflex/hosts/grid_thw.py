"""Architectures of the Qwen-VL kind: dynamic resolution, (time, height, width) of every image as an input."""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from packaging.version import Version

from tokenflex.contracts import Grid
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.layouts import GridLayout, Runs
from tokenflex.hosts.modality import Inputs, Layouts, Modality, Shown
from tokenflex.hosts.ragged import USUAL
from tokenflex.hosts.resized_patches import BY_ROW, CHANNELS_LAST, Patches

IMAGE_GRID, VIDEO_GRID, TYPES = "image_grid_thw", "video_grid_thw", "mm_token_type_ids"


def _cell(config: Any, name: str | None) -> tuple[int, int]:
    if name is None:
        return 1, 1
    size = getattr(config.vision_config, name)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def merged(
    name: str | None = "spatial_merge_size",
    grids: str = IMAGE_GRID,
    *,
    runs: Runs = "whole",
    one: bool = False,
    **of_each: Any,
) -> Layouts:
    """Layouts from an input of (time, height, width) in patches.

    Args:
        name: attribute of ``vision_config`` with the patches per token (side or pair); None: grids are in tokens.
        runs: whether videos are one run or one run per frame.
        one: whether time is averaged away.
        of_each: settings of each `GridLayout`.
    """

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
        rows, cols = _cell(config, name)
        return [
            GridLayout(
                grid=Grid(h // rows, w // cols),
                views=1 if one else t,
                runs=runs if t > 1 else "whole",
                video=grids == VIDEO_GRID and not one,
                **of_each,
            )
            for t, h, w in inputs[grids].tolist()
        ]

    return layouts


def by_own_merge_size(config: Any, inputs: Inputs, shown: Shown) -> Sequence[GridLayout]:
    """``image_merge_sizes`` gives the patches per token of every image."""
    pairs = zip(inputs[IMAGE_GRID].tolist(), inputs["image_merge_sizes"].tolist(), strict=True)
    return [GridLayout(grid=Grid(h // size, w // size), views=t) for (t, h, w), size in pairs]


def videos(runs: Runs, **settings: Any) -> Modality:
    """Videos, by default under a key and a placeholder of their own."""
    own: dict[str, Any] = {"key": "video", "token": "video_token_id"} | settings
    return Modality(
        layouts=merged(grids=VIDEO_GRID, runs=runs),
        encoder="get_video_features",
        pixels="pixel_values_videos",
        grids=VIDEO_GRID,
        **own,
    )


def rotary(
    *,
    layouts: Layouts | None = None,
    video: Modality | None = None,
    vision_tower: tuple[str, ...] = ("model.visual",),
    projector: tuple[str, ...] = ("model.visual.merger",),
    types: str | None = TYPES,
    **more: Any,
) -> Architecture:
    """An architecture whose positions have axes: time, height and width (M-RoPE)."""
    shared = video is not None and video.key == "image"
    image = Modality(layouts=layouts or merged(), grids=IMAGE_GRID, type=1 if shared else None)
    return Architecture(
        family="grid_thw",
        modalities=(image, video) if video else (image,),
        canonical=lambda config: USUAL,
        vision_tower=vision_tower,
        projector=projector,
        rotary=True,
        types=types,
        **more,
    )


def plain(
    layouts: Layouts,
    *,
    inputs: tuple[str, ...] = (),
    video: Modality | None = None,
    types: str | None = None,
    vision_tower: tuple[str, ...] = ("model.vision_tower",),
    projector: tuple[str, ...] = ("model.vision_tower.merger",),
    **more: Any,
) -> Architecture:
    """An architecture with plain positions, or without any."""
    known = (IMAGE_GRID, *inputs)
    image = Modality(layouts=layouts, inputs=known, sizes=known, type=1 if types else None)
    return Architecture(
        family="grid_thw",
        modalities=(image, video) if video else (image,),
        canonical=lambda config: USUAL,
        vision_tower=vision_tower,
        projector=projector,
        types=types,
        **more,
    )


QWEN = Patches()
BY_ROWS = Patches(order=BY_ROW)
DEEP = ("model.visual.merger", "model.visual.deepstack_merger_list")
DOWNSAMPLED = ("model.visual.merger", "model.visual.downsample")
GLM_VIDEOS = videos("views", key="image", token="image_token_id", type=2)
"""Placeholders of images; with both in one batch the host wants them under one key, in the order of the text."""
GLM: dict[str, Any] = {"video": GLM_VIDEOS, "projector": DOWNSAMPLED, "resizing": Patches(frames=2)}
MERGER: dict[str, Any] = {
    "vision_tower": ("model.vision_tower",), "projector": ("model.vision_tower.patch_merger",), "resizing": BY_ROWS,
}  # fmt: skip
ADAPTED: dict[str, Any] = {
    "vision_tower": ("model.vision_tower",), "projector": ("model.vision_adapter", "model.vision_projection"),
}  # fmt: skip
ALL_TYPES = "this transformers tells its experts apart by the types of the whole row's tokens"
COLUMNS = "its generate counts padding into positions"

ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2_vl": rotary(video=videos("whole"), resizing=QWEN),
    "qwen2_5_vl": rotary(video=videos("whole"), resizing=QWEN),
    "qwen3_vl": rotary(video=videos("views"), projector=DEEP, resizing=QWEN),
    "qwen3_vl_moe": rotary(video=videos("views"), projector=DEEP, resizing=QWEN),
    "qwen3_5": rotary(video=videos("views"), resizing=QWEN),
    "qwen3_5_moe": rotary(video=videos("views"), resizing=QWEN),
    "qwen4_exp": rotary(video=videos("views"), resizing=QWEN),
    "qwen2_5_omni_thinker": rotary(types=None, resizing=QWEN),
    "qwen3_omni_moe_thinker": rotary(
        types=None, projector=("model.visual.merger", "model.visual.merger_list"), resizing=QWEN
    ),
    "glm4v": rotary(**GLM),
    "glm4v_moe": rotary(**GLM),
    "glm46v": rotary(**GLM),
    "glmga": rotary(**GLM),
    "glm_ocr": rotary(**GLM),
    "glm5_next": plain(
        merged(), vision_tower=("model.visual",), projector=DOWNSAMPLED, types=TYPES,
        video=videos("views", token="image_token_id", type=2),
    ),
    "ernie4_5_vl_moe": rotary(
        vision_tower=("model.vision_tower",), projector=("model.resampler_model",), resizing=QWEN,
        looks_ahead=None if Version(transformers.__version__) >= Version("5.24") else ALL_TYPES,
    ),
    "paddleocr_vl": rotary(projector=("model.projector",), resizing=BY_ROWS),
    "hunyuan_vl": rotary(
        layouts=merged(begin=1, end=1, newline=True), **MERGER,
        packing_refusal="the host numbers images through the whole row",
    ),
    "hy_v4_vl": rotary(layouts=merged(newline=True), **MERGER),
    "cohere_compass": rotary(video=videos("views"), projector=DEEP, resizing=QWEN),
    "cosmos3_edge": rotary(
        video=videos("views"), projector=("model.projector",), resizing=Patches(numbers=CHANNELS_LAST)
    ),
    "cosmos3_omni": rotary(video=videos("views"), projector=DEEP, resizing=QWEN),
    "video_llama_3": plain(
        by_own_merge_size, inputs=("image_merge_sizes",), vision_tower=("model.vision_model",),
        projector=("model.projector",), resizing=QWEN,
    ),
    "exaone4_5": plain(
        merged(), vision_tower=("model.visual",), projector=("model.visual.merger",), resizing=QWEN,
        grouping_refusal=COLUMNS,
    ),
    "dots3_note": plain(merged(), resizing=QWEN),
    "kimi_k25": plain(merged("merge_kernel_size", one=True), projector=("model.mm_projector",)),
    "lfm3_vl": plain(merged(), projector=("model.multi_modal_projector",), resizing=QWEN),
    "hyperclovax_vision_v2": plain(
        merged(), vision_tower=("model.vision_model",), projector=("model.projector",), resizing=QWEN,
        grouping_refusal=COLUMNS,
    ),
    "minimax_m3_vl": plain(merged(), projector=("model.multi_modal_projector",), resizing=QWEN),
    "muse_glimmer": plain(merged("merge_size"), **ADAPTED),
    "muse_spark": plain(merged("merge_size"), **ADAPTED),
    "inkling2": plain(merged(None)),
    "inkling2_loop": plain(merged(None)),
}  # fmt: skip
"""The rows of this family, by ``model_type``."""

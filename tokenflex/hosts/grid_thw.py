"""Architectures of the Qwen-VL kind: dynamic resolution, (time, height, width) of every image as an input."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenflex.contracts import Grid
from tokenflex.hosts.architecture import Architecture, Inputs, Modality, Runs, Unit
from tokenflex.hosts.ragged import USUAL
from tokenflex.hosts.square import Shown, Units

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
    **of_unit: Any,
) -> Units:
    """Units from an input of (time, height, width) in patches.

    Args:
        name: attribute of ``vision_config`` with the patches per token (side or pair); None: grids are in tokens.
        runs: whether videos are one run or one run per frame.
        one: whether time is averaged away.
        of_unit: of each `Unit`.
    """

    def units(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
        rows, cols = _cell(config, name)
        return [
            Unit(
                grid=Grid(h // rows, w // cols),
                views=1 if one else t,
                runs=runs if t > 1 else "whole",
                video=grids == VIDEO_GRID and not one,
                **of_unit,
            )
            for t, h, w in inputs[grids].tolist()
        ]

    return units


def by_own_merge_size(config: Any, inputs: Inputs, shown: Shown) -> Sequence[Unit]:
    """``image_merge_sizes`` gives the patches per token of every image."""
    pairs = zip(inputs[IMAGE_GRID].tolist(), inputs["image_merge_sizes"].tolist(), strict=True)
    return [Unit(grid=Grid(h // size, w // size), views=t) for (t, h, w), size in pairs]


def videos(runs: Runs, **settings: Any) -> Modality:
    """Videos, by default under a key and a placeholder of their own."""
    own: dict[str, Any] = {"key": "video", "token": "video_token_id"} | settings
    return Modality(
        units=merged(grids=VIDEO_GRID, runs=runs),
        encoder="get_video_features",
        pixels="pixel_values_videos",
        grids=VIDEO_GRID,
        **own,
    )


def rotary(
    *,
    units: Units | None = None,
    video: Modality | None = None,
    vision_tower: tuple[str, ...] = ("model.visual",),
    projector: tuple[str, ...] = ("model.visual.merger",),
    types: str | None = TYPES,
) -> Architecture:
    """Positions in time, height and width (M-RoPE)."""
    shared = video is not None and video.key == "image"
    image = Modality(units=units or merged(), grids=IMAGE_GRID, type=1 if shared else None)
    return Architecture(
        family="grid_thw",
        modalities=(image, video) if video else (image,),
        canonical=lambda config: USUAL,
        vision_tower=vision_tower,
        projector=projector,
        rotary=True,
        types=types,
    )


def plain(
    units: Units,
    *,
    inputs: tuple[str, ...] = (),
    video: Modality | None = None,
    types: str | None = None,
    vision_tower: tuple[str, ...] = ("model.vision_tower",),
    projector: tuple[str, ...] = ("model.vision_tower.merger",),
) -> Architecture:
    """Plain positions, or none."""
    known = (IMAGE_GRID, *inputs)
    image = Modality(units=units, inputs=known, sizes=known, type=1 if types else None)
    return Architecture(
        family="grid_thw",
        modalities=(image, video) if video else (image,),
        canonical=lambda config: USUAL,
        vision_tower=vision_tower,
        projector=projector,
        types=types,
    )


DEEP = ("model.visual.merger", "model.visual.deepstack_merger_list")
GLM = ("model.visual.merger", "model.visual.downsample")
GLM_VIDEOS = videos("views", key="image", token="image_token_id", type=2)
"""Placeholders of images; with both in one batch the host wants them under one key, in the order of the text."""
MERGER: dict[str, Any] = {"vision_tower": ("model.vision_tower",), "projector": ("model.vision_tower.patch_merger",)}
VISUAL: dict[str, Any] = {"vision_tower": ("model.visual",), "projector": ("model.visual.merger",)}
ADAPTED: dict[str, Any] = {
    "vision_tower": ("model.vision_tower",),
    "projector": ("model.vision_adapter", "model.vision_projection"),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2_vl": rotary(video=videos("whole")),
    "qwen2_5_vl": rotary(video=videos("whole")),
    "qwen3_vl": rotary(video=videos("views"), projector=DEEP),
    "qwen3_vl_moe": rotary(video=videos("views"), projector=DEEP),
    "qwen3_5": rotary(video=videos("views")),
    "qwen3_5_moe": rotary(video=videos("views")),
    "qwen4_exp": rotary(video=videos("views")),
    "qwen2_5_omni_thinker": rotary(types=None),
    "qwen3_omni_moe_thinker": rotary(types=None, projector=("model.visual.merger", "model.visual.merger_list")),
    "glm4v": rotary(video=GLM_VIDEOS, projector=GLM),
    "glm4v_moe": rotary(video=GLM_VIDEOS, projector=GLM),
    "glm46v": rotary(video=GLM_VIDEOS, projector=GLM),
    "glmga": rotary(video=GLM_VIDEOS, projector=GLM),
    "glm_ocr": rotary(video=GLM_VIDEOS, projector=GLM),
    "glm5_next": plain(
        merged(), vision_tower=("model.visual",), projector=GLM, types=TYPES,
        video=videos("views", token="image_token_id", type=2),
    ),
    "ernie4_5_vl_moe": rotary(vision_tower=("model.vision_tower",), projector=("model.resampler_model",)),
    "paddleocr_vl": rotary(projector=("model.projector",)),
    "hunyuan_vl": rotary(units=merged(begin=1, end=1, newline=True), **MERGER),
    "hy_v4_vl": rotary(units=merged(newline=True), **MERGER),
    "cohere_compass": rotary(video=videos("views"), projector=DEEP),
    "cosmos3_edge": rotary(video=videos("views"), projector=("model.projector",)),
    "cosmos3_omni": rotary(video=videos("views"), projector=DEEP),
    "video_llama_3": plain(
        by_own_merge_size, inputs=("image_merge_sizes",), vision_tower=("model.vision_model",),
        projector=("model.projector",),
    ),
    "exaone4_5": plain(merged(), **VISUAL),
    "dots3_note": plain(merged()),
    "kimi_k25": plain(merged("merge_kernel_size", one=True), projector=("model.mm_projector",)),
    "lfm3_vl": plain(merged(), projector=("model.multi_modal_projector",)),
    "hyperclovax_vision_v2": plain(merged(), vision_tower=("model.vision_model",), projector=("model.projector",)),
    "minimax_m3_vl": plain(merged(), projector=("model.multi_modal_projector",)),
    "muse_glimmer": plain(merged("merge_size"), **ADAPTED),
    "muse_spark": plain(merged("merge_size"), **ADAPTED),
    "inkling2": plain(merged(None)),
    "inkling2_loop": plain(merged(None)),
}  # fmt: skip
"""By ``model_type``."""

"""Architectures that cut images into tiles of one canvas, with newlines: LLaVA-NeXT and its kin.

LLaVA-NeXT-Video's videos are their frames' tokens, pooled by the host and without newlines.

LLaVA-OneVision cuts an image alone in its row into tiles as LLaVA-NeXT does; a canvas beyond the checkpoint's number
of tiles is then shrunk. Images that share a row are one tile and one newline each. A video is its frames' tokens,
pooled by the host, and one newline.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from tokenflex.contracts import Grid
from tokenflex.errors import InputError
from tokenflex.hosts import anyres
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.layouts import GridLayout, ImageLayout, TiledLayout
from tokenflex.hosts.modality import Inputs, Layouts, Modality, Shown
from tokenflex.hosts.refusing import sized
from tokenflex.hosts.resized_tiles import Canvases
from tokenflex.hosts.resizing import Resizing

ASPECT_RATIO = re.compile(r"anyres_max_([1-9]\d*)")
PROJECTOR = ("model.multi_modal_projector", "model.image_newline")
CANVASES = Canvases()


def tiled(grid: Callable[[Any], Grid]) -> Layouts:
    """Every image is cut into tiles.

    Args:
        grid: tokens of one tile, from the config.
    """

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[ImageLayout]:
        return [
            TiledLayout(grid=grid(config), tiles=anyres.local_tiles(config, size), size=size)
            for size in anyres.image_sizes(inputs)
        ]

    return layouts


def tiled_if_alone(config: Any, inputs: Inputs, shown: Shown) -> Sequence[ImageLayout]:
    """Images alone in their row are cut into tiles; the others are one tile and a newline."""
    grid, most = anyres.square(config), int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    sizes, found = anyres.image_sizes(inputs), list[ImageLayout]()
    for size, company in zip(sizes, _companies(inputs, len(sizes)), strict=True):
        if company == 1:
            tiles = anyres.local_tiles(config, size)
            found.append(TiledLayout(grid=grid, tiles=tiles, size=size, most=most))
        else:
            found.append(GridLayout(grid=grid, end=1))
    return found


def _companies(inputs: Inputs, images: int) -> list[int]:
    """For every image the number of images in its row; without ``batch_num_images`` all count as alone.

    Raises:
        InputError: ``batch_num_images`` tells of another number of images.
    """
    per_row = sized(inputs, {}, ("batch_num_images",)).get("batch_num_images")
    if per_row is None:
        return [1] * images
    counts = per_row.tolist()
    if sum(counts) != images:
        raise InputError(
            f"batch_num_images adds up to {sum(counts)} images, pixel_values holds {images}; pass both as the "
            "processor made them."
        )
    return [count for count in counts for _ in range(count)]


def frames(grid: Callable[[Any], Grid], end: int) -> Layouts:
    """Stacked videos.

    Args:
        grid: tokens of one frame, from the config.
        end: newlines behind a video.
    """

    def layouts(config: Any, inputs: Inputs, shown: Shown) -> Sequence[ImageLayout]:
        pixels = inputs.get("pixel_values_videos")
        if pixels is None:
            return []
        axes = pixels.dim() if isinstance(pixels, Tensor) else None
        if axes != 5:
            raise InputError(
                f"pixel_values_videos {f'has {axes} axes' if axes is not None else f'is a {type(pixels).__name__}'}; "
                "the host takes a tensor of 5: videos, frames, channels, height, width. Pass it as the processor made "
                "it."
            )
        return [GridLayout(grid=grid(config), views=pixels.shape[1], end=end, video=True) for _ in pixels]

    return layouts


def by_stride(config: Any) -> Grid:
    """Patches of one frame, pooled by ``spatial_pool_stride``."""
    patches = anyres.square(config)
    return Grid(patches.rows // config.spatial_pool_stride, patches.cols // config.spatial_pool_stride)


def halved(config: Any) -> Grid:
    """Patches of one frame, every two of a side pooled, the last one by itself where their number is odd."""
    patches = anyres.square(config)
    return Grid(-(-patches.rows // 2), -(-patches.cols // 2))


def by_rate(config: Any) -> Grid:
    """The projector's queries of one tile."""
    rate, patches = Fraction(config.downsample_rate), anyres.square(config)
    return Grid(int(patches.rows * rate), int(patches.cols * rate))


def without_class_token(config: Any) -> str | None:
    """Only a square number of tokens per tile is served; class tokens lie on no grid."""
    if getattr(config, "vision_feature_select_strategy", "default") != "default":
        return "vision_feature_select_strategy='full' keeps the class token, which lies on no grid"
    return None


def of_known_canvas(config: Any) -> str | None:
    """The checkpoint must say how many tiles' worth of tokens a canvas may have."""
    if not ASPECT_RATIO.fullmatch(config.vision_aspect_ratio):
        return (
            f"vision_aspect_ratio={config.vision_aspect_ratio!r} names no largest number of tiles; "
            "set it as in 'anyres_max_9'"
        )
    return None


def tiles(
    images: Layouts,
    videos: Layouts | None = None,
    *,
    sizes: tuple[str, ...] = ("image_sizes",),
    canonical: Callable[[Any], Grid] = anyres.square,
    projector: tuple[str, ...] = PROJECTOR,
    resizing: Resizing | str = CANVASES,
    **more: Any,
) -> Architecture:
    """An architecture of this family.

    Args:
        images: how images lie.
        videos: how videos lie, for hosts that take them.
        sizes: inputs that tell how images are cut.
        canonical: tokens of one tile.
    """
    modalities = [Modality(layouts=images, inputs=sizes, sizes=sizes)]
    if videos is not None:
        modalities.append(
            Modality(
                layouts=videos,
                key="video",
                encoder="get_video_features",
                token="video_token_id",
                pixels="pixel_values_videos",
            )
        )
    return Architecture(
        family="tiles",
        modalities=tuple(modalities),
        canonical=canonical,
        vision_tower=("model.vision_tower",),
        projector=projector,
        resizing=resizing,
        **more,
    )


LLAVA_NEXT: dict[str, Any] = {"attention_refusal": None, "refusal": without_class_token}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llava_next": tiles(tiled(anyres.square), **LLAVA_NEXT),
    "llava_next_video": tiles(
        tiled(anyres.square), frames(by_stride, end=0),
        projector=(*PROJECTOR, "model.vision_resampler"), **LLAVA_NEXT,
    ),
    "llava_onevision": tiles(
        tiled_if_alone, frames(halved, end=1), sizes=("image_sizes", "batch_num_images"), attention_refusal=None,
        refusal=of_known_canvas,
        append_refusal="an image is laid out otherwise alone than in the company of others",
    ),
    "granite4_vision": tiles(
        tiled(by_rate), canonical=by_rate,
        projector=("model.layerwise_projectors", "model.spatial_projectors", "model.image_newline"),
        resizing="its projectors read several layers of the tower, so the whole view can't be encoded alone",
        attention_refusal="its adapter doesn't read its vision tower",
    ),
}  # fmt: skip
"""The rows of this family, by ``model_type``."""

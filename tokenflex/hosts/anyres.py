"""What LLaVA-NeXT and its kin share: canvases of tiles, and reading tiles and videos from the host.

The hosts pack and unpad what their vision tower saw before they hand it out. Tiles are read back from there by asking
for images that fill their canvas exactly (`encoded_images`): nothing is cut off then, and undoing the packing is
a matter of shape. Only the host's public ``get_image_features`` is called, so what its tower and projector do stays
its own business, and the tower runs once.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tokenflex.contracts import Grid, HostBatch, HostInputs
from tokenflex.errors import InputError
from tokenflex.hosts.refusing import refusing, sized

ENCODER_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")


def square(config: Any) -> Grid:
    """Patches of one tile."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return Grid(side, side)


def canvas_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of the canvas that an image of (height, width) pixels is fitted into."""
    return _canvas(size, tuple((height, width) for height, width in config.image_grid_pinpoints))


@functools.lru_cache(maxsize=4096)
def _canvas(size: tuple[int, int], known: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    height, width = select_best_resolution(size, list(known))
    return height, width


def local_tiles(config: Any, size: tuple[int, int]) -> Grid:
    """Local tiles, down and across, of an image of (height, width) pixels."""
    side = config.vision_config.image_size
    height, width = canvas_size(config, size)
    return Grid(height // side, width // side)


def encoded_images(model: Any, batch: HostBatch, **options: Any) -> Any:
    """The host's output for the batch's images, packed as if none of them needed unpadding.

    The host reads the sizes number by number, so they are given on the CPU.
    """
    pixels, known = batch.inputs["pixel_values"], {**batch.inputs, **batch.cpu}
    sizes = torch.tensor([canvas_size(model.config, size) for size in image_sizes(known)])
    with refusing({"pixel_values": pixels, "image_sizes": batch.inputs.get("image_sizes")}):
        return model.get_image_features(pixels, sizes, return_dict=True, **given(batch.inputs), **options)


def encoded_videos(model: Any, inputs: HostInputs, **options: Any) -> Any:
    """The host's output for the batch's videos, packed ``(videos, packed, dim)``."""
    pixels = inputs["pixel_values_videos"]
    with refusing({"pixel_values_videos": pixels}):
        return model.get_video_features(pixels, return_dict=True, **given(inputs), **options)


def given(inputs: HostInputs) -> dict[str, Any]:
    """The encoder's options that came with a batch."""
    return {key: inputs[key] for key in ENCODER_OPTIONS if inputs.get(key) is not None}


def image_sizes(inputs: HostInputs) -> list[tuple[int, int]]:
    """(height, width) in pixels of every image; empty without images.

    Args:
        inputs: the batch; best with ``image_sizes`` on the CPU.

    Raises:
        InputError: there are more or fewer sizes than images, or a size is none.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return []
    if not isinstance(pixels, Tensor):
        raise InputError(f"pixel_values is a {type(pixels).__name__}; expected a tensor, as the processor made it.")
    sizes = sized(inputs, {}, ("image_sizes",))["image_sizes"]
    if len(sizes) != len(pixels):
        raise InputError(
            f"pixel_values holds {len(pixels)} images, image_sizes holds {len(sizes)}; pass both as the processor made "
            "them."
        )
    return [(height, width) for height, width in sizes.tolist()]


def pad_token(config: Any) -> int:
    """The id padding is written as, never a placeholder's."""
    taken = {getattr(config, name, None) for name in ("image_token_id", "video_token_id")}
    found = getattr(config, "pad_token_id", None)
    found = found if found is not None else getattr(config.text_config, "pad_token_id", None)
    return found if found is not None and found not in taken else 0

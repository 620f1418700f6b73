"""Pixels: resampling, and the patches that processors cut images into."""

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Frames = Float[Tensor, "frames channels height width"]


def resampled(images: Frames, size: tuple[int, int]) -> Float[Tensor, "frames channels new_height new_width"]:
    """Bicubic and antialiased, in 32 bits, given back in the images' own type; as they are if they have that size.

    Args:
        size: (height, width) in pixels.
    """
    if images.shape[-2:] == size:
        return images
    made = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return made.to(images.dtype)


def together(
    values: Sequence[Tensor],
    kinds: Sequence[Hashable],
    make: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """What ``make`` gives for every value, those of one kind at once.

    Args:
        kinds: values of one kind have one shape and are made alike.
        make: from values of one kind, stacked, and the number of one of them, the results, stacked.
    """
    found: list[Tensor | None] = [None] * len(values)
    for kind in dict.fromkeys(kinds):
        same = [i for i, one in enumerate(kinds) if one == kind]
        for i, result in zip(same, make(torch.stack([values[i] for i in same]), same[0]), strict=True):
            found[i] = result
    return [one for one in found if one is not None]


def unpatched(
    patches: Float[Tensor, "images patches numbers"],
    pattern: str,
    *,
    grid: tuple[int, int, int],
    merge: tuple[int, int],
    patch: int,
    channels: int = 3,
) -> Float[Tensor, "images frames channels height width"]:
    """Images of one size from their patches.

    Args:
        pattern: how patches lie, in the names ``t`` (time), ``gh gw`` (merged patches), ``mh mw`` (patches within
            one), ``c`` (channels), ``tp ph pw`` (frames, rows and columns within a patch), for einops.
        grid: (time, height, width) in patches.
        merge: patches per token, down and across.
        patch: pixels along the side of a patch.
    """
    time, height, width = grid
    sizes = {"t": time, "gh": height // merge[0], "gw": width // merge[1], "mh": merge[0], "mw": merge[1]}
    sizes |= {"c": channels, "ph": patch, "pw": patch}
    return rearrange(patches, f"n {pattern} -> n (t tp) c (gh mh ph) (gw mw pw)", **sizes)


def patched(
    images: Float[Tensor, "images frames channels height width"],
    pattern: str,
    *,
    time: int,
    merge: tuple[int, int],
    patch: int,
) -> Float[Tensor, "images patches numbers"]:
    """The other way round; arguments as in `unpatched`."""
    sizes = {"t": time, "mh": merge[0], "mw": merge[1], "ph": patch, "pw": patch}
    return rearrange(images, f"n (t tp) c (gh mh ph) (gw mw pw) -> n {pattern}", **sizes)


def tiled(
    canvas: Float[Tensor, "images channels height width"], side: int
) -> Float[Tensor, "images tiles channels side side"]:
    """Canvases cut into square tiles, row-major."""
    return rearrange(canvas, "n c (r h) (k w) -> n (r k) c h w", h=side, w=side)


def untiled(
    tiles: Float[Tensor, "images tiles channels side side"], rows: int
) -> Float[Tensor, "images channels height width"]:
    """The canvases that were cut into tiles.

    Args:
        rows: of tiles.
    """
    return rearrange(tiles, "n (r k) c h w -> n c (r h) (k w)", r=rows)

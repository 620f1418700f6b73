"""Smaller images and videos for hosts whose processors cut an image of any size into patches in a row."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import HostBatch
from tokenflex.contracts.scaler import shrunk
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import Modality
from tokenflex.hosts.resizing import Call, Image, Resizing, shared
from tokenflex.ops import pixels

BY_TOKEN = "(t gh gw mh mw)"
"""Patches that become one token lie side by side."""
BY_ROW = "(t gh mh gw mw)"
"""Patches lie row by row."""
CHANNELS_FIRST, CHANNELS_LAST = "(c tp ph pw)", "(ph pw c tp)"
"""The order of the numbers within a patch."""
CHANNELS = ("in_channels", "in_chans", "num_channels")


@final
@dataclass(frozen=True)
class Patches(Resizing):
    """Patches of all images in a row, and a grid of patches, (time,) height and width, per image.

    An image keeps the same number of frames; both sides are rounded down to whole tokens.

    Attributes:
        order: of the patches of an image, as in `tokenflex.ops.pixels.unpatched`.
        numbers: within a patch.
        limit: whether the processor takes the most pixels of an image as a setting of its call.
        frames: frames that such a limit counts for an image.
    """

    levels: ClassVar[str] = "whole tokens in height and width, rounded down; frames of videos likewise"

    order: str = BY_TOKEN
    numbers: str = CHANNELS_FIRST
    limit: bool = True
    frames: int = 1

    @property
    def setting(self) -> str | None:
        """The processor's least and most pixels of an image, where it takes them."""
        return "size" if self.limit else None

    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """An image of as many whole tokens in height and width as its share has."""
        name = _grids(modality)
        *time, height, width = batch.cpu[name][number].tolist()
        grid = shrunk(full.grid, share)
        merge = height // full.grid.rows, width // full.grid.cols
        size = torch.tensor((*time, merge[0] * grid.rows, merge[1] * grid.cols), dtype=batch.cpu[name].dtype)
        return Image(number=number, full=full, layout=replace(full, grid=grid), sizes={name: size})

    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> list[Call]:
        """One call, with patches and grids of the images asked for."""
        name = _grids(modality)
        grids, values = batch.cpu[name], batch.inputs[modality.pixels]
        starts = [0, *itertools.accumulate(grids.prod(-1).tolist())]
        these = [values[starts[p.number] : starts[p.number + 1]] for p in images]
        before = [_thw(grids[image.number].tolist()) for image in images]
        after = [_thw(image.sizes[name].tolist()) for image in images]

        def make(stacked: Tensor, at: int) -> Tensor:
            grid = images[at].full.grid
            merge = before[at][1] // grid.rows, before[at][2] // grid.cols
            return self._resized(stacked, config.vision_config, before[at], after[at], merge)

        kinds = [(*old, *new, p.full.grid) for old, new, p in zip(before, after, images, strict=True)]
        inputs: dict[str, Any] = shared(modality, batch, name, *modality.sizes)
        for other in modality.sizes:
            own = batch.inputs[other]
            if other != name:
                inputs[other] = own[torch.tensor([image.number for image in images]).to(own.device)]
        inputs[name] = torch.stack([image.sizes[name] for image in images]).to(batch.inputs[name].device)
        inputs[modality.pixels] = torch.cat(pixels.together(these, kinds, make))
        return [Call(tuple(range(len(images))), inputs)]

    def processor_kwargs(self, config: Any, image: Image, tokens: int) -> Mapping[str, Any]:
        """``size``: the most pixels of an image, amid those that give the largest size of at most so many tokens."""
        full = image.full
        if not self.limit or full.video:
            return {}
        (sizes,) = image.sizes.values()
        _, height, width = _thw(sizes.tolist())
        token = height // full.grid.rows * (width // full.grid.cols) * _side(config.vision_config) ** 2
        most = int(amid(full, tokens) * full.grid.tokens * token)
        return {"size": {"shortest_edge": self.frames * token, "longest_edge": self.frames * most}}

    def _resized(
        self,
        stacked: Float[Tensor, "images patches ..."],
        vision: Any,
        before: tuple[int, int, int],
        after: tuple[int, int, int],
        merge: tuple[int, int],
    ) -> Float[Tensor, "images new_patches ..."]:
        if before == after:
            return stacked
        channels = next((getattr(vision, name) for name in CHANNELS if hasattr(vision, name)), 3)
        patch = _side(vision)
        pattern = f"{self.order} {self.numbers}"
        flat = stacked.flatten(2)
        whole = pixels.unpatched(flat, pattern, grid=before, merge=merge, patch=patch, channels=channels)
        small = pixels.resampled(whole.flatten(0, 1), (after[1] * patch, after[2] * patch))
        small = small.unflatten(0, whole.shape[:2])
        cut = pixels.patched(small, pattern, time=after[0], merge=merge, patch=patch)
        return cut.unflatten(2, stacked.shape[2:])


def amid(full: ImageLayout, tokens: int) -> float:
    """The share in the middle of those at which an image has as many tokens as possible, but at most ``tokens``.

    Where even the smallest image has more, that one's.
    """
    rows, cols = full.grid.rows, full.grid.cols
    steps = sorted({(k / side) ** 2 for side in (rows, cols) for k in range(1, side + 1)} | {0.0})
    fitting = [i for i, share in enumerate(steps) if share == 0 or full.count(shrunk(full.grid, share)) <= tokens]
    low = fitting[-1]
    high = steps[low + 1] if low + 1 < len(steps) else (1 + 1 / max(rows, cols)) ** 2
    return ((math.sqrt(steps[low]) + math.sqrt(high)) / 2) ** 2


def _grids(modality: Modality) -> str:
    """The name of the input that has the images' grids."""
    return modality.grids or modality.sizes[0]


def _side(vision: Any) -> int:
    """Pixels along the side of a patch."""
    return vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]


def _thw(sizes: Sequence[int]) -> tuple[int, int, int]:
    """(time, height, width); time is 1 where it isn't told."""
    *time, height, width = sizes
    return (time[0] if time else 1, height, width)

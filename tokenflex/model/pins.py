"""Levels that stay as they were chosen, while a client scores one sample several times.

A trainer generates an answer, scores it with the model and with a reference, and compares the numbers. They belong
together only if every call saw the same visual tokens, but a router may choose otherwise once an answer stands behind
the prompt, or once weights have moved. Inside `pinned` an image keeps the level it got first.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenflex.contracts import HostBatch
from tokenflex.contracts.numbers import integer
from tokenflex.errors import ConfigError
from tokenflex.model.tower import Encoded

CAPACITY = 16384
"""Prompts that are remembered; the images used longest ago are forgotten first."""
Prompts = OrderedDict[tuple[int, bytes], int]


@dataclass(frozen=True)
class Pinned:
    """What an image is known by.

    Attributes:
        image: its pixels, its number in its row, and the scaler whose levels are meant.
        ids: of its row, without padding.
    """

    image: tuple[Any, ...]
    ids: bytes

    def begins(self, tokens: int) -> tuple[int, bytes]:
        """The row's first tokens, in short."""
        return tokens, _digest(self.ids[: tokens * WIDTH])

    @property
    def tokens(self) -> int:
        """How many ids the row has that the image stands in."""
        return len(self.ids) // WIDTH


WIDTH = 8
"""Bytes of an id."""


class Pins:
    """Levels of images and prompts, in the order they were used.

    An image has its level by its pixels and by the text tokens of its row: those of a prompt seen before, with or
    without an answer behind it. Several prompts about one image have levels of their own.

    Args:
        capacity: prompts to remember.

    Raises:
        ConfigError: the capacity isn't a whole number above 0.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        if (integer(capacity) or 0) < 1:
            raise ConfigError(f"capacity={capacity!r:.200}; give how many prompts to remember, at least 1.")
        self.capacity = capacity
        self._levels: OrderedDict[tuple[Any, ...], Prompts] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def clear(self) -> None:
        """Forget the levels of all rows."""
        self._levels.clear()
        self._size = 0

    def level(self, one: Pinned) -> int | None:
        """The level of the longest prompt that this row begins with; None where there is none."""
        prompts = self._levels.get(one.image)
        if prompts is None:
            return None
        self._levels.move_to_end(one.image)
        sizes = sorted({tokens for tokens, _ in prompts if tokens <= one.tokens}, reverse=True)
        return next((prompts[key] for key in map(one.begins, sizes) if key in prompts), None)

    def keep(self, one: Pinned, level: int) -> None:
        """Remember a level from now on."""
        prompts = self._levels.setdefault(one.image, OrderedDict())
        before = len(prompts)
        prompts[one.begins(one.tokens)] = level
        self._size += len(prompts) - before
        self._levels.move_to_end(one.image)
        while self._size > self.capacity:
            oldest = next(iter(self._levels.values()))
            oldest.popitem(last=False)
            self._size -= 1
            if not oldest:
                self._levels.popitem(last=False)

    def settled(
        self, images: Sequence[Pinned], levels: Sequence[int], scores: Sequence[Tensor | None]
    ) -> tuple[list[int], list[Tensor | None]]:
        """(Levels, scores) of a batch: those known from before, without scores; the others are remembered.

        Args:
            levels, scores: as they would be chosen now.
        """
        found, judged = list(levels), list(scores)
        for i, one in enumerate(images):
            level = self.level(one)
            if level is None:
                self.keep(one, found[i])
            else:
                found[i], judged[i] = level, None
        return found, judged


_CURRENT: ContextVar[Pins | None] = ContextVar("tokenflex_pins", default=None)


@contextmanager
def pinned(pins: Pins | None = None) -> Iterator[Pins]:
    """Within the context every image keeps the level that it got first, in every FlexModel with the same scaler.

    What a call forces by ``level`` or limits by ``budget`` isn't remembered, and isn't changed.

    Args:
        pins: levels from before, to go on with; None: none so far.
    """
    pins = Pins() if pins is None else pins
    token = _CURRENT.set(pins)
    try:
        yield pins
    finally:
        _CURRENT.reset(token)


def current() -> Pins | None:
    """The pins of the innermost `pinned`; None outside."""
    return _CURRENT.get()


def images_of(scaler: Any, encoded: Encoded) -> list[Pinned]:
    """What every image of a batch is known by; nothing where its pixels aren't under a usual name.

    Args:
        scaler: whose levels are meant.
    """
    batch = encoded.batch
    if batch is None:
        return []
    ids, attended = batch.cpu["input_ids"].long(), batch.attended
    rows = [row[keep].numpy().tobytes() for row, keep in zip(ids, attended, strict=True)]
    views = [len(image.features) for image in encoded.images]
    seen, found = [0] * len(rows), list[Pinned]()
    for row, pixels in zip(batch.rows, _digests(batch, views), strict=False):
        kind = (type(scaler).__name__, repr(scaler.config), scaler.num_levels)
        found.append(Pinned((*kind, pixels, seen[row]), rows[row]))
        seen[row] += 1
    return found


def _digests(batch: HostBatch, views: Sequence[int]) -> list[bytes]:
    """Digests of every image's pixels; of all pixels of the batch, where it isn't known which are whose.

    Args:
        views: of every image.
    """
    count = len(batch.spans)
    tensors = [
        value
        for name, value in batch.inputs.items()
        if "pixel_values" in name and isinstance(value, Tensor) and value.is_floating_point()
    ]
    slices = [_slices(batch, pixels, views) for pixels in tensors]
    known = [pieces for pieces in slices if pieces is not None]
    if len(known) < len(tensors):
        return [_digest(*map(_content, tensors))] * count
    return [_digest(*map(_content, pieces)) for pieces in zip(*known, strict=True)]


def _slices(batch: HostBatch, pixels: Tensor, views: Sequence[int]) -> list[Tensor] | None:
    """Every image's share of the pixels, by the lengths that add up; None where none do."""
    count, rows, size = len(batch.spans), len(batch.cpu["input_ids"]), len(pixels)
    one_each = list(batch.rows) == list(range(rows))
    for name, grids in batch.cpu.items():
        if name.endswith("grid_thw") and grids.shape == (count, 3):
            patches = grids.prod(-1).tolist()
            return list(pixels.split(patches)) if sum(patches) == size else None
    if size == count and (count != rows or one_each):
        return list(pixels)
    if size == rows and count != rows:
        return [pixels[row] for row in batch.rows]
    if len(views) == count and sum(views) == size:
        return list(pixels.split(list(views)))
    return None


def _content(pixels: Tensor) -> bytes:
    """Their bytes without zeros: images are padded by zeros to what else is in their batch."""
    flat = pixels.detach().flatten()
    return flat[flat != 0].cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _digest(*pieces: bytes) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        found.update(piece)
    return found.digest()

"""Levels as callers write them, and the plain integers they stand for."""

from collections.abc import Sequence
from typing import Any

from tokenflex.contracts.numbers import ARRAYS, integer
from tokenflex.errors import InputError

NAMED = {"coarsest": 0, "finest": -1}
"""Levels that have a name, whatever their number."""
SEQUENCES: tuple[type, ...] = (Sequence,)
TEXTS: tuple[type, ...] = (str, bytes, bytearray, memoryview)


def read_levels(level: Any, num_levels: int) -> int | tuple[int, ...]:
    """The level for all images, or one per image, each from 0 to ``num_levels`` less 1.

    Args:
        level: an integer (Python's, numpy's or a tensor without axes; -1 is the finest), ``"coarsest"`` or
            ``"finest"``; or a sequence, tensor or array of one axis with one of these per image.

    Raises:
        InputError: it is anything else, or there is no such level.
    """
    several = isinstance(level, SEQUENCES) and not isinstance(level, TEXTS)
    if isinstance(level, ARRAYS):
        several = level.ndim == 1 and not getattr(level, "is_meta", False)
        level = level.tolist() if several else level
    return tuple(_index(one, num_levels) for one in level) if several else _index(level, num_levels)


def spread(levels: int | tuple[int, ...], images: int) -> list[int]:
    """One level per image from what `read_levels` gave.

    Raises:
        InputError: there are more or fewer levels than images.
    """
    if isinstance(levels, int):
        return [levels] * images
    if len(levels) != images:
        raise InputError(f"level has {len(levels)} entries for {images} images; give one per image, or a single int.")
    return list(levels)


def _index(level: Any, num_levels: int) -> int:
    number = NAMED.get(level) if isinstance(level, str) else integer(level)
    if number is None:
        raise InputError(
            f"level={level!r:.200} ({type(level).__name__}) is no level; use an integer from 0 (fewest tokens) "
            f"to {num_levels - 1} (all tokens; -1 for short), 'coarsest' or 'finest', or a flat list with one of these "
            "per image."
        )
    if not -num_levels <= number < num_levels:
        raise InputError(
            f"level {number} is out of range: this scaler has {num_levels} levels, 0 (fewest tokens) to "
            f"{num_levels - 1} (all tokens; -1 for short)."
        )
    return number % num_levels

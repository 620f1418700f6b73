"""Plain Python numbers from what callers hold: Python's own, numpy's, and tensors without axes."""

from typing import Any

import numpy as np
from torch import Tensor

ARRAYS: tuple[type, ...] = (Tensor, np.ndarray)
INTEGERS: tuple[type, ...] = (int, np.integer)
FLOATS: tuple[type, ...] = (float, np.floating)
BOOLEANS: tuple[type, ...] = (bool, np.bool_)
LARGEST = 2**1023
"""Integers up to here have a float of finite size."""


def integer(value: Any) -> int | None:
    """The integer ``value`` stands for; None where it is something else, as booleans and floats are."""
    held = _held(value)
    return int(held) if isinstance(held, INTEGERS) and not isinstance(held, bool) else None


def real(value: Any) -> float | None:
    """The number ``value`` stands for, integers included; None where it is something else, as booleans are."""
    found, held = integer(value), _held(value)
    if found is not None:
        return float(found) if abs(found) <= LARGEST else None
    return float(held) if isinstance(held, FLOATS) else None


def truth(value: Any) -> bool | None:
    """The boolean ``value`` stands for; None where it is something else, as 0 and 1 are."""
    held = _held(value)
    return bool(held) if isinstance(held, BOOLEANS) else None


def _held(value: Any) -> Any:
    """What a tensor or array without axes holds; anything else as it is."""
    readable = isinstance(value, ARRAYS) and value.ndim == 0 and not getattr(value, "is_meta", False)
    return value.item() if readable else value

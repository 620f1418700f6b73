"""Places on an image: sine codes of them, and a sequence of places that is well spread wherever it stops."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Grid

HIGHEST = 32
"""The fastest sine runs through so many half periods along a side, the slowest through one."""
PLASTIC = 1.324717957244746
"""Root of x^3 = x + 1, the generalised golden ratio of the plane."""


def grid_places(grid: Grid, like: Tensor) -> Float[Tensor, "tokens 2"]:
    """The centres of a grid's cells, (down, across) between 0 and 1, on the device of ``like``."""
    down = (torch.arange(grid.rows, device=like.device) + 0.5) / grid.rows
    across = (torch.arange(grid.cols, device=like.device) + 0.5) / grid.cols
    return torch.cartesian_prod(down, across)


def spread_places(count: int) -> Float[Tensor, "count 2"]:
    """Places between 0 and 1 of which the first few, too, are spread over the image; the first is its middle.

    An additive recurrence with the powers of the plane's golden ratio.
    """
    steps = torch.arange(count, dtype=torch.float64)[:, None]
    strides = torch.tensor([1 / PLASTIC, 1 / PLASTIC**2], dtype=torch.float64)
    return ((0.5 + steps * strides) % 1).float()


def sine_codes(places: Float[Tensor, "places 2"], width: int) -> Float[Tensor, "places width"]:
    """Sines and cosines of both coordinates at ``width // 4`` frequencies; zeros fill up what is left.

    The product of two codes depends on the difference of their places alone, and is largest, half the width, for equal
    ones.
    """
    bands = width // 4
    exponents = torch.arange(bands, device=places.device) / max(bands - 1, 1)
    angles = places[..., None] * (math.pi * HIGHEST**exponents)
    codes = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return torch.nn.functional.pad(codes, (0, width - 4 * bands))

"""Checkpoints in the layout the authors of AVG-LLaVA (and M3) released, to and from host + parts."""

from tokenflex.conversion.check import largest_difference
from tokenflex.conversion.convert import Conversion, convert, reverse

__all__ = ["Conversion", "convert", "largest_difference", "reverse"]

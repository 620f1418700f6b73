"""The old name of `tokenflex.conversion`, for one more version."""

from tokenflex.renamed import attributes

_NAMES = ("Conversion", "convert", "largest_difference", "reverse")

__getattr__ = attributes(__name__, {name: f"tokenflex.conversion:{name}" for name in _NAMES})

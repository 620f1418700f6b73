"""The language model's cache between turns: how much of it the next prompt begins with, and how it is cut back.

A cache is known by what it was filled with: the id of every text token, and for visual tokens the image and its level.
The next prompt goes on behind the longest beginning that both have in common, which ends in front of the first image
whose level changed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tokenflex.contracts import Spliced
from tokenflex.hosts import joining

Signature = list[int]
"""Of every token what the language model was given: a text token's id, or a negative number for image and level."""
READ = 2
"""Tokens at the end of a prompt that are read whatever a cache holds: ``generate`` needs one to begin with, and hosts
take a single one for a step of an answer."""


def signature(
    spliced: Spliced, order: Sequence[int], tokens: Sequence[int], levels: Sequence[int], num_levels: int
) -> Signature:
    """Of a prompt of one row without padding.

    Args:
        order: numbers of the images, in the order in which they stand in the row.
        tokens, levels: of every image.
    """
    found: Signature = spliced.inputs["input_ids"][0].tolist()
    visual = (spliced.index[0] < 0).nonzero()[:, 0].tolist()
    owners = [image for image in order for _ in range(tokens[image])]
    for place, image in zip(visual, owners, strict=True):
        found[place] = -1 - image * num_levels - levels[image]
    return found


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = min(len(one), len(other))
    return next((i for i in range(count) if one[i] != other[i]), count)


class KeptCache:
    """A cache, and what it was filled with.

    Args:
        empty: a cache to fill, such as a ``StaticCache``; None: the host makes its own.
    """

    def __init__(self, empty: Any = None) -> None:
        self._empty, self.cache = empty, empty
        self.held: Signature = []

    def begin(self, prompt: Signature) -> int:
        """Cut the cache back to what ``prompt`` begins with.

        Returns:
            The tokens that it holds of the prompt; 0 where it can't be used, and then it is empty.
        """
        columns = min(common(self.held, prompt), len(prompt) - READ)
        if columns <= 0 or not cut(self.cache, columns, len(self.held)):
            self.clear()
            return 0
        self.held = self.held[:columns]
        return columns

    def keep(self, cache: Any, prompt: Signature) -> None:
        """Take over a cache.

        Args:
            prompt: what it was filled with, and perhaps a last token that it hasn't read.
        """
        self.cache, self.held = cache, prompt[: int(cache.get_seq_length())]

    def clear(self) -> None:
        """Let go of everything that was read; a cache that was given is empty again."""
        self.held = []
        self.cache = self._empty
        if self._empty is not None:
            self._empty.reset()

    @property
    def bytes(self) -> int:
        """Of keys, values and states."""
        return sum(one.numel() * one.element_size() for one in tensors(self.cache))


def cut(cache: Any, columns: int, held: int) -> bool:
    """Leave the first columns of a cache, if that can be done.

    Args:
        held: columns that it has.
    """
    if columns == held:
        return True
    kinds = {type(layer).__name__ for layer in cache.layers} if type(cache) in (DynamicCache, StaticCache) else set()
    if kinds == {"DynamicLayer"}:
        joining.crop(cache, columns)
        return True
    if kinds != {"StaticLayer"}:
        return False
    for layer in cache.layers:  # what stands behind its length is written over
        layer.cumulative_length -= held - columns
    return True


def tensors(cache: Any) -> list[Tensor]:
    """All that a cache holds."""
    found: list[Tensor] = []
    for layer in getattr(cache, "layers", ()):
        for value in vars(layer).values():
            several = value.values() if isinstance(value, dict) else [value]
            found += [one for one in several if isinstance(one, torch.Tensor)]
    return found

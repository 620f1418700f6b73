"""What comes before a row's first image is read once: at a finer level the host goes on from there.

Words see only what is in front of them, so their keys and values don't depend on the images behind, whatever their
level. Hosts where that isn't so (see `tokenflex.hosts.architectures.looks_ahead`), or whose caches aren't simply one
column per token, read everything again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from tokenflex.contracts import Spliced
from tokenflex.hosts import joining, stock
from tokenflex.hosts.architectures import looks_ahead
from tokenflex.hosts.grouped import IDS, MASK, FilledCache

WORTH = 32
"""Tokens that a call must save for the copying to pay."""


@dataclass(frozen=True)
class Head:
    """The text tokens of a row in front of its first image.

    Attributes:
        ids: of these tokens, on the CPU.
        layers: keys and values of every layer, ``(heads, tokens, width)``.
    """

    ids: Int[Tensor, " tokens"]
    layers: tuple[tuple[Tensor, Tensor], ...]


class Prefixes:
    """What the language model has read of the rows of one batch that go on to a finer level.

    Args:
        worth: see `WORTH`.
    """

    def __init__(self, host: Any, worth: int) -> None:
        base = stock.base_of(host)
        self.text = base.config.get_text_config(decoder=True)
        self.shares = joining.croppable(base) and looks_ahead(base.config) is None
        self.worth, self.name = worth, ""
        self._heads: dict[int, Head] = {}

    def remember(self, row: int, place: int, spliced: Spliced, filled: FilledCache) -> None:
        """Keep what a row has read in front of its first image.

        Args:
            place: of the row in ``spliced`` and ``filled``, which are padded on the left.
        """
        if not self.shares or row in self._heads:
            return
        start, count = _text_after(spliced, place)
        ids = spliced.inputs[IDS][place, start : start + count].cpu()
        layers = tuple(
            tuple(one[place, :, start : start + count].clone() for one in (layer.keys, layer.values))
            for layer in filled.cache.layers
        )
        self.name = filled.name
        self._heads[row] = Head(ids, layers)  # pyright: ignore[reportArgumentType]

    def behind(self, rows: Sequence[int], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The cache to begin with, by the name it has among the host's inputs; nothing where it isn't worth it.

        Args:
            rows: numbers of the rows.
            inputs: of these rows, padded on the left.
        """
        ids, starts = inputs[IDS].cpu(), _starts(inputs)
        heads = [self._heads.get(row) for row in rows]
        known = [0 if head is None else _alike(head.ids, ids[i, starts[i] :]) for i, head in enumerate(heads)]
        columns = min(start + count for start, count in zip(starts, known, strict=True))
        columns = min(columns, ids.shape[1] - 2)  # the last token, and one in front of it, are always read
        held = [max(columns - start, 0) for start in starts]
        if sum(held) < self.worth or not any(held):
            return {}
        filled: Any = DynamicCache(config=self.text)
        first = next(head for head in heads if head is not None)
        for layer, pair in enumerate(first.layers):
            made = [one.new_zeros(len(rows), one.shape[0], columns, one.shape[2]) for one in pair]
            for place, (head, count) in enumerate(zip(heads, held, strict=True)):
                for whole, part in zip(made, () if head is None else head.layers[layer], strict=head is not None):
                    whole[place, :, columns - count :] = part[:, :count]
            filled.update(*made, layer)
        return {self.name: filled}


def _starts(inputs: Mapping[str, Any]) -> list[int]:
    """Columns of padding in front of every row."""
    mask: Tensor = inputs[MASK]
    return (mask.shape[1] - (mask != 0).sum(-1)).tolist()


def _text_after(spliced: Spliced, place: int) -> tuple[int, int]:
    """(column of the row's first token, tokens from there up to its first visual one)."""
    start = _starts(spliced.inputs)[place]
    text = spliced.index[place, start:] >= 0
    return start, len(text) if bool(text.all()) else int((~text).int().argmax())


def _alike(one: Tensor, other: Tensor) -> int:
    """How many tokens both begin with that are equal."""
    count = min(len(one), len(other))
    same = one[:count] == other[:count]
    return count if bool(same.all()) else int((~same).int().argmax())

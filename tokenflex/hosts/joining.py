"""Caches of groups of rows, joined into the cache of the whole batch.

A padded batch's cache has a column for every column of the batch. A group's has as many as the group's longest row, so
its columns are put where the group's rows stand in the batch; zeros fill the rest, which is padding. Layers that carry
a state instead of columns have one state per row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenflex.contracts import PaddingSide

WINDOWS = ("DynamicSlidingWindowLayer", "LinearAttentionAndSlidingWindowAttentionLayer")
COLUMNS = ("DynamicLayer", "DynamicIndexedLayer", "LinearAttentionAndFullAttentionLayer", *WINDOWS)
STATES = (
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
)
KNOWN = {"DummyLayer", *COLUMNS, *STATES}
"""Layers of transformers' dynamic cache by what they hold; others, and subclasses, aren't joined."""
HELD = ("conv_states", "recurrent_states")


def refusal(host: Any, side: PaddingSide) -> str | None:
    """Why caches that a host fills can't be joined, as a clause; None when they can.

    Args:
        side: where rows are padded. Behind padding a state is another than in front of it.
    """
    cache = DynamicCache(config=host.config.get_text_config(decoder=True))
    if not _all_known(cache):
        return "its cache holds layers that aren't known"
    stateful = any(type(layer).__name__ in STATES for layer in cache.layers)
    return "the states in its cache take in the padding behind a row" if stateful and side == "right" else None


def join(
    caches: Sequence[Any], groups: Sequence[Sequence[int]], lengths: Sequence[int], length: int, side: PaddingSide
) -> Any:
    """The cache of a batch from those of its groups, which are used up: no more than one layer is held twice.

    Args:
        caches: one per group.
        groups: numbers of the rows of each.
        lengths: columns of each.
        length: columns of the batch.
        side: where groups and batch are padded.

    Returns:
        The first cache with all rows; None if one holds something that isn't known.
    """
    if not all(_all_known(cache) for cache in caches) or len({len(cache.layers) for cache in caches}) != 1:
        return None
    places = _Places(groups, lengths, length, side)
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if len({type(layer) for layer in layers}) != 1:
            return None
        _join_layers(layers, places)
    return caches[0]


def repeat(cache: Any, copies: int) -> None:
    """Give every row of a joined cache ``copies`` neighbouring ones, as ``generate`` does with the rows themselves."""
    for layer in cache.layers if copies > 1 else ():
        if type(layer).__name__ in COLUMNS:
            layer.batch_repeat_interleave(copies)
        for name in HELD if type(layer).__name__ in STATES else ():
            states = getattr(layer, name)
            states |= {key: one.repeat_interleave(copies, dim=0) for key, one in states.items() if one is not None}


def lay(part: Tensor, whole: Tensor, rows: Sequence[int], dim: int, start: int) -> None:
    """Put a group's values into those of the batch.

    Args:
        part: of the group.
        whole: of the batch, rows first.
        rows: their numbers.
        dim: of the columns.
        start: the batch's column that the group's first stands in.
    """
    index = torch.tensor(rows, device=whole.device)
    whole.narrow(dim, start, part.shape[dim]).index_copy_(0, index, part.to(whole))


class _Places:
    """Where the columns of groups stand in the batch; see `join`."""

    def __init__(self, groups: Sequence[Sequence[int]], lengths: Sequence[int], length: int, side: PaddingSide) -> None:
        self.groups, self.length = groups, length
        self.ends = [length] * len(groups) if side == "left" else list(lengths)
        self.rows = sum(map(len, groups))

    def columns(self, parts: Sequence[Tensor], keep: int, dim: int) -> Tensor:
        """The last ``keep`` columns of the batch.

        Args:
            parts: the last columns of every group, rows first.
        """
        first = self.length - keep
        whole = parts[0].new_zeros(self.rows, *parts[0].shape[1:dim], keep, *parts[0].shape[dim + 1 :])
        for part, rows, end in zip(parts, self.groups, self.ends, strict=True):
            hidden = max(first - (end - part.shape[dim]), 0)
            seen = part.narrow(dim, min(hidden, part.shape[dim]), max(part.shape[dim] - hidden, 0))
            if seen.shape[dim]:
                lay(seen, whole, rows, dim, end - seen.shape[dim] - first)
        return whole

    def states(self, parts: Sequence[Tensor]) -> Tensor:
        """States of all rows, in the batch's order."""
        order = torch.tensor([row for rows in self.groups for row in rows], device=parts[0].device)
        return torch.cat(list(parts))[order.argsort()]


def _all_known(cache: Any) -> bool:
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return False
    return all(type(layer).__name__ in KNOWN and _is_stock(layer) for layer in cache.layers)


def _is_stock(layer: Any) -> bool:
    return type(layer).__module__ == DynamicCache.__module__


def _join_layers(layers: Sequence[Any], places: _Places) -> None:
    """Fill the first layer with the rows of all, and let go of the others'."""
    first, kind = layers[0], type(layers[0]).__name__
    if kind in COLUMNS and first.is_initialized:
        keep = places.length
        if kind in WINDOWS:
            keep = min(keep, first.sliding_window - 1)
            first.cumulative_length = places.length
        for name in ("keys", "values"):
            _take(layers, name, places.columns([getattr(layer, name) for layer in layers], keep, 2))
    if getattr(first, "is_indexer_initialized", False):
        keys = [layer.indexer_keys for layer in layers]
        _take(layers, "indexer_keys", places.columns(keys, places.length, 1))
    if getattr(first, "indexer_position_ids", None) is not None:
        parts = [layer.indexer_position_ids.movedim(1, 0) for layer in layers]  # (axes, rows, columns)
        _take(layers, "indexer_position_ids", places.columns(parts, places.length, 2).movedim(0, 1))
    for name in HELD if kind in STATES else ():
        for key, value in getattr(first, name).items():
            if value is not None:
                getattr(first, name)[key] = places.states([getattr(layer, name)[key] for layer in layers])


def _take(layers: Sequence[Any], name: str, joined: Tensor) -> None:
    setattr(layers[0], name, joined)
    for layer in layers[1:]:
        setattr(layer, name, None)


def croppable(host: Any) -> bool:
    """Whether the last column of a cache that a host fills can be taken off again: all its layers only grow."""
    cache = DynamicCache(config=host.config.get_text_config(decoder=True))
    return _all_known(cache) and all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def crop(cache: Any, columns: int) -> None:
    """Leave the first columns of a cache whose layers only grow."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]


def select(cache: Any, rows: Sequence[int]) -> None:
    """Leave some rows of a cache, in this order."""
    for layer in cache.layers:
        kind = type(layer).__name__
        if kind in COLUMNS and layer.is_initialized:
            layer.keys, layer.values = _pick(layer.keys, rows, 0), _pick(layer.values, rows, 0)
        if getattr(layer, "is_indexer_initialized", False):
            layer.indexer_keys = _pick(layer.indexer_keys, rows, 0)
        if getattr(layer, "indexer_position_ids", None) is not None:
            layer.indexer_position_ids = _pick(layer.indexer_position_ids, rows, 1)
        for name in HELD if kind in STATES else ():
            states = getattr(layer, name)
            states |= {key: _pick(one, rows, 0) for key, one in states.items() if one is not None}


def _pick(values: Tensor, rows: Sequence[int], dim: int) -> Tensor:
    return values.index_select(dim, torch.tensor(rows, device=values.device))

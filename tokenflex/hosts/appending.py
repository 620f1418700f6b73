"""Rows put behind one another: the turns of a conversation as one row, whose images are encoded already."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenflex.contracts import HostBatch
from tokenflex.errors import InputError
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.modality import BatchImage, batch_of
from tokenflex.hosts.placeholders import POSITIONS, TOKEN_KEYS
from tokenflex.hosts.positions import FRAME_SECONDS

IDS, MASK = "input_ids", "attention_mask"
PER_TOKEN = {IDS: 0, MASK: 1, **TOKEN_KEYS}
"""Inputs with one entry per token, and what stands for a turn that has none."""


def appended(batches: Sequence[HostBatch], architecture: Architecture, encoded: set[str]) -> HostBatch:
    """One row of the turns' tokens, with the images of all turns, modality by modality.

    Args:
        batches: of one row each, in their order, as they were read or as they were made for smaller images.
        architecture: of the host.
        encoded: inputs of the encoders that a shortened batch has no use for; they are left out.

    Raises:
        InputError: a batch has several rows, padding, or an input of which it isn't known how it is put together.
    """
    _require_one_row(batches)
    grids = {modality.grids for modality in architecture.modalities if modality.grids}
    stacked = (*sorted(grids), *FRAME_SECONDS)
    names = dict.fromkeys(name for batch in batches for name, value in batch.inputs.items() if value is not None)
    kept = [name for name in names if name in grids or name not in encoded]
    unknown = [name for name in kept if name not in PER_TOKEN and name not in stacked]
    if unknown:
        raise InputError(
            f"it isn't known how {', '.join(unknown)} of several turns are put together; leave them out, or give the "
            "whole conversation to generate()."
        )
    inputs, cpu = dict[str, Tensor](), dict[str, Tensor]()
    for name in kept:
        inputs[name] = _joined(name, [batch.inputs for batch in batches])
        if any(name in batch.cpu for batch in batches):
            cpu[name] = _joined(name, [batch.cpu for batch in batches])
    items, start = list[BatchImage](), 0
    for batch in batches:
        items += [replace(item, span=replace(item.span, row=0, at=item.span.at + start)) for item in batch.items]
        start += batch.cpu[IDS].shape[1]
    order = list(architecture.modalities)
    items.sort(key=lambda item: order.index(item.modality))
    return batch_of(inputs, cpu, items)


def _require_one_row(batches: Sequence[HostBatch]) -> None:
    for batch in batches:
        rows, length = batch.cpu[IDS].shape
        if rows != 1 or not bool(batch.attended.all()):
            raise InputError(
                f"a turn has {rows} rows of {length} tokens, {int((~batch.attended).sum())} of them padding; a "
                "turn is one row without padding."
            )
        if batch.inputs.get(POSITIONS) is not None:
            raise InputError(
                f"a turn comes with {POSITIONS}, and where it stands in the conversation isn't theirs to say; leave "
                "them out."
            )


def _joined(name: str, turns: Sequence[object]) -> Tensor:
    """An input of all turns: along the tokens, filled in for turns without it, or one behind the other."""
    found = [turn.get(name) for turn in turns]  # pyright: ignore[reportAttributeAccessIssue]
    if name not in PER_TOKEN:
        return torch.cat([value for value in found if value is not None])
    like = next(value for value in found if value is not None)
    filled = [
        like.new_full((1, turn[IDS].shape[1]), PER_TOKEN[name]) if value is None else value  # pyright: ignore
        for value, turn in zip(found, turns, strict=True)
    ]
    return torch.cat(filled, dim=1)

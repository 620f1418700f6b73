"""From a batch to what a decision needs, and from a decision to the host's shorter batch; each step once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import (
    READ_OFF,
    Decision,
    HostBatch,
    HostInputs,
    Instruction,
    PaddingSide,
    Policy,
    ScaledTokens,
    Spliced,
    VisualTokens,
)
from tokenflex.contracts.levels import read_levels, spread
from tokenflex.hosts.grouped import Rows
from tokenflex.model import door, generation

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any


@dataclass(frozen=True)
class Encoded:
    """A batch after one pass through the vision tower.

    Attributes:
        images: one item per image, in batch order.
        instructions: one per image: that of its row.
        counts: ``(images, levels)``, visual tokens each level costs, on the CPU.
        batch: what was read of it before; None where there is no host.
        made: the images' pyramid under ``"pyramids"``, once it is made, and under ``"judged"`` whether a decision has
            shown that it holds no zeros in place of images that aren't finite. New images need a new dict.
    """

    images: tuple[VisualTokens, ...]
    instructions: tuple[Instruction, ...]
    counts: Int[Tensor, "images levels"]
    batch: HostBatch | None = None
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def encode(flex: FlexModel, inputs: HostInputs, words: bool = True) -> Encoded:
    """Read the batch and run the vision tower once.

    Args:
        words: whether the router, or who else, is to read the instructions; parts that need them get them anyway.

    Raises:
        InputError: images and placeholders don't match, or labels stand on placeholders.
    """
    adapter, parts = flex.adapter, flex.compressor
    batch = adapter.read(inputs)
    door.check_targets(batch, adapter)
    needs, scaler, levels = parts.needs, parts.scaler, range(parts.num_levels)
    images = adapter.encode(batch, attention=True) if needs.intersection(READ_OFF) else adapter.encode(batch)
    instructions: tuple[Instruction, ...] = ()
    if images and (words or "instruction" in needs):
        masked = replace(batch, cpu=generation.with_mask(batch.cpu, flex.host))
        rows = adapter.instructions(masked)
        instructions = tuple(rows[image.row] for image in images)
    if "instruction" in needs:
        images = tuple(replace(image, instruction=said) for image, said in zip(images, instructions, strict=True))
    layouts = [scaler.layouts(grid) for grid in batch.grids]
    frames = [[scaler.kept_views(n, i) for i in levels] if n else None for n in batch.frames]
    counts = adapter.count(batch, layouts, frames).view(-1, len(levels))
    return Encoded(images, instructions, counts, batch)


def scores(flex: FlexModel, encoded: Encoded) -> Float[Tensor, "images levels"]:
    """The voter's scores, with gradients to router and voter."""
    table, made = flex.compressor.judged(encoded.images, encoded.instructions, encoded.made.get("pyramids"))
    encoded.made["pyramids"] = made
    return table


def decide(
    flex: FlexModel, encoded: Encoded, levels: int | tuple[int, ...] | None, policy: Policy | None
) -> tuple[Decision, ...]:
    """One decision per image.

    Args:
        levels: forced ones; None lets the router decide.
        policy: instead of the assembly's own.
    """
    counts, images = encoded.counts, encoded.images
    forced = None if levels is None else spread(levels, len(images))
    if not images:
        return ()
    if forced is not None:
        rows: Sequence[Tensor | None] = [None] * len(images)
        chosen = forced
    else:
        with torch.no_grad():
            choice = flex.compressor.decided(scores(flex, encoded), counts, images, policy)
        encoded.made["judged"] = all(choice.judged)
        chosen, rows = choice.levels, list(choice.scores)
    table = counts.tolist()
    return tuple(
        Decision(level=pick, scores=row, tokens=costs[pick], of=costs[-1])
        for pick, row, costs in zip(chosen, rows, table, strict=True)
    )


def at_levels(
    flex: FlexModel,
    inputs: HostInputs,
    encoded: Encoded,
    levels: Sequence[int],
    padding_side: PaddingSide | None = None,
    rows: Sequence[int] | None = None,
) -> Spliced:
    """The batch with each image at its level; see `FlexModel.at_levels`."""
    batch, scaled = _read_again(flex, inputs, encoded), _scaled(flex, encoded, levels)
    given: Mapping[str, Any] = {} if rows is None else {"rows": rows}
    return flex.adapter.splice(batch, encoded.images, scaled, padding_side, **given)


def in_rows(
    flex: FlexModel, inputs: HostInputs, encoded: Encoded, levels: Sequence[int], side: PaddingSide | None
) -> Rows:
    """The batch with each image at its level, and any of its rows apart.

    Args:
        side: where shortened rows are padded; None keeps the side the batch has.
    """
    batch, scaled = _read_again(flex, inputs, encoded), _scaled(flex, encoded, levels)
    return Rows.of(flex.host, flex.adapter, batch, encoded.images, scaled, side)


def _read_again(flex: FlexModel, inputs: HostInputs, encoded: Encoded) -> HostBatch:
    """What was read of the batch that was encoded; that of another one with the same images."""
    batch = encoded.batch
    return batch if batch is not None and _same(inputs, batch.inputs) else flex.adapter.read(inputs)


def _scaled(flex: FlexModel, encoded: Encoded, levels: Sequence[int]) -> list[ScaledTokens]:
    parts = flex.compressor
    levels = spread(read_levels(levels, parts.num_levels), len(encoded.images))
    made = encoded.made.get("pyramids") if encoded.made.get("judged") else None
    if made is not None and not _trains(encoded.images):
        return made.at(levels)
    return list(parts.scale(encoded.images, levels))


def _same(inputs: HostInputs, read: HostInputs) -> bool:
    """Whether a batch is the one that was read, tensor by tensor."""
    return inputs is read or (inputs.keys() == read.keys() and all(inputs[name] is read[name] for name in inputs))


def _trains(images: Sequence[VisualTokens]) -> bool:
    """Whether gradients are to reach the images' features through the scaler."""
    return torch.is_grad_enabled() and any(image.features.requires_grad for image in images)

"""From a batch to what a decision needs, and from a decision to the host's shorter batch; each step once.

When the vision tower runs in between is the business of `tokenflex.model.tower`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import Decision, Grid, HostBatch, HostInputs, Instruction, PaddingSide, Policy, Spliced
from tokenflex.contracts.levels import read_levels, spread
from tokenflex.errors import InputError
from tokenflex.hosts.grouped import Rows
from tokenflex.hosts.placeholders import padding_side
from tokenflex.model import door, generation, pins
from tokenflex.model.tower import Chosen, Encoded, tower_of

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any


def encode(flex: FlexModel, inputs: HostInputs, look: bool = True) -> Encoded:
    """Read the batch and run the vision tower, as far as it has to run before levels are chosen.

    Args:
        look: whether the router, or who else, is to choose by what the images and the instructions say; parts that
            need instructions get them anyway.

    Raises:
        InputError: images and placeholders don't match, labels stand on placeholders, or as for
            `tokenflex.model.door.check_contents`.
    """
    adapter, needs = flex.adapter, flex.compressor.needs
    if inputs.get("input_ids") is None:
        raise InputError(
            f"the batch ({', '.join(map(str, inputs)) or 'empty'}) has no input_ids; give it as the host's processor "
            "made it: decide(**inputs)."
        )
    batch, tower = adapter.read(inputs), tower_of(adapter, flex.compressor)
    door.check_contents(batch, adapter)
    images = tower.look(batch, look)
    instructions: tuple[Instruction, ...] = ()
    if batch.spans and (look or "instruction" in needs):
        masked = replace(batch, cpu=generation.with_mask(batch.cpu, flex.host))
        rows = adapter.instructions(masked)
        instructions = tuple(rows[row] for row in batch.rows)
    images = tower.with_instructions(images, instructions, range(len(images)))
    counts, layouts, resized = tower.levels(batch)
    return Encoded(images, instructions, counts, batch, layouts, resized)


def scores(flex: FlexModel, encoded: Encoded) -> Float[Tensor, "images levels"]:
    """The voter's scores, with gradients to router and voter.

    Raises:
        InputError: the batch was encoded for nobody to look at.
    """
    if len(encoded.instructions) < len(encoded.counts) or len(encoded.images) < len(encoded.counts):
        raise InputError("the batch was encoded with look=False, so a router can't judge it; encode it with look=True.")
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
    forced = None if levels is None else spread(levels, len(counts))
    if not len(counts):
        return ()
    kept = pins.current() if levels is None and policy is None else None
    pinned = pins.images_of(flex.compressor.scaler, encoded) if kept is not None else []
    known = [kept.level(one) for one in pinned] if kept is not None else []
    if known and None not in known:
        forced = [level for level in known if level is not None]
    reasons = [""] * len(counts)
    if forced is not None:
        rows: Sequence[Tensor | None] = [None] * len(counts)
        picked = forced
    else:
        policy = policy or flex.compressor.policy
        costs = _per_view(encoded) if policy.per_view else counts
        with torch.no_grad():
            choice = flex.compressor.decided(scores(flex, encoded), costs, images, policy)
        encoded.made["judged"] = all(choice.judged)
        picked, rows, reasons = list(choice.levels), list[Tensor | None](choice.scores), choice.reasons
        if kept is not None:
            picked, rows = kept.settled(pinned, picked, rows)
    table = counts.tolist()
    return tuple(
        Decision(level=pick, scores=row, tokens=costs[pick], of=costs[-1], reason=reason)
        for pick, row, costs, reason in zip(picked, rows, table, reasons, strict=True)
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
    return chosen(flex, inputs, encoded, levels).splice(flex.adapter, padding_side, rows)


def in_rows(
    flex: FlexModel, inputs: HostInputs, encoded: Encoded, levels: Sequence[int], side: PaddingSide | None
) -> Rows:
    """The batch with each image at its level, and any of its rows apart.

    Args:
        side: where shortened rows are padded; None keeps the side the batch has.
    """
    batch = _read_again(flex, inputs, encoded)
    picked, kept = chosen(flex, inputs, encoded, levels), side or padding_side(batch.attended)

    def splice(rows: Sequence[int] | None) -> Spliced:
        return picked.splice(flex.adapter, kept, rows)

    return Rows(flex.host, flex.adapter, batch, splice(None), kept, splice)


def chosen(flex: FlexModel, inputs: HostInputs, encoded: Encoded, levels: Sequence[int]) -> Chosen:
    """Each image at its level, before it is put into the text; the vision tower runs for what it hasn't seen yet."""
    levels = spread(read_levels(levels, flex.compressor.num_levels), len(encoded.counts))
    return tower_of(flex.adapter, flex.compressor).chosen(encoded, _read_again(flex, inputs, encoded), levels)


def _per_view(encoded: Encoded) -> Int[Tensor, "images levels"]:
    """Tokens kept per view at every level."""
    kept = [[one.tokens if isinstance(one, Grid) else one for one in levels] for levels in encoded.layouts]
    return torch.tensor(kept)


def _read_again(flex: FlexModel, inputs: HostInputs, encoded: Encoded) -> HostBatch:
    """What was read of the batch that was encoded; that of another one with the same images."""
    batch = encoded.batch
    return batch if batch is not None and _same(inputs, batch.inputs) else flex.adapter.read(inputs)


def _same(inputs: HostInputs, read: HostInputs) -> bool:
    """Whether a batch is the one that was read, tensor by tensor."""
    return inputs is read or (inputs.keys() == read.keys() and all(inputs[name] is read[name] for name in inputs))

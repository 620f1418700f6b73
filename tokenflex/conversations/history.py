"""The turns of a conversation as one prompt, with every image encoded once."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenflex.contracts import Decision, HostBatch, Policy, ScaledTokens, Spliced, VisualTokens
from tokenflex.model import encoding
from tokenflex.model.encoding import Encoded
from tokenflex.model.tower import Chosen, tower_of

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any


@dataclass(frozen=True)
class Prompt:
    """All turns, each image at its level.

    Attributes:
        spliced: one row without padding.
        order: numbers of the images in the order in which they stand in it; images count turn by turn, oldest first.
        tokens: of every image.
        length: tokens of the row with all images at full size.
        batch, images, scaled: what was spliced.
        places: the number of every image in ``batch``.
    """

    spliced: Spliced
    order: Sequence[int]
    tokens: Sequence[int]
    length: int
    batch: HostBatch = field(repr=False)
    images: Sequence[VisualTokens] = field(repr=False)
    scaled: Sequence[ScaledTokens] = field(repr=False)
    places: Sequence[int] = field(repr=False)

    def behind(self, flex: FlexModel, columns: int) -> dict[str, Any]:
        """The host's inputs for going on behind a cache.

        Args:
            columns: that the cache holds, which end in front of an image.
        """
        inputs = dict(self.spliced.inputs)
        positions = flex.adapter.position_ids(inputs) if flex.adapter.position_inputs else None
        if positions is not None and positions.dim() == 3:
            inputs["position_ids"] = positions
        if columns:
            inputs.pop("mm_encoder_outputs", None)
            seen = int((self.spliced.index[0, :columns] < 0).sum())
            before = [0, *itertools.accumulate(self.tokens[image] for image in self.order)]
            rest = [self.places[image] for image, passed in zip(self.order, before, strict=False) if passed >= seen]
            if rest:
                inputs |= flex.adapter.written(self.batch, self.images, self.scaled, sorted(rest))
        return inputs


class History:
    """The turns so far.

    Args:
        flex: the model whose adapter and parts are used.
        offload: keep the images' features on the CPU between turns.
    """

    def __init__(self, flex: FlexModel, offload: bool) -> None:
        self.flex, self.offload = flex, offload
        self.turns: list[Encoded] = []

    def encoded(self, inputs: Mapping[str, Any]) -> Encoded:
        """A turn, read and encoded, without its pixels where they aren't wanted again."""
        made = encoding.encode(self.flex, inputs)
        batch = made.batch
        if batch is not None and not self.flex.compressor.scaler.shares:
            batch = replace(batch, inputs={name: _without_values(name, one, batch) for name, one in inputs.items()})
        kept = replace(made, batch=batch)
        return moved(kept, torch.device("cpu")) if self.offload else kept

    def said(self, inputs: Mapping[str, Any]) -> Encoded:
        """A turn without images."""
        batch = self.flex.adapter.read(inputs)
        return Encoded((), (), torch.zeros(0, self.flex.compressor.num_levels, dtype=torch.long), batch)

    def at_hand(self, turns: Sequence[Encoded]) -> list[Encoded]:
        """Turns as they are decided about: features on the host's device, with the last question."""
        adapter, tower = self.flex.adapter, tower_of(self.flex.adapter, self.flex.compressor)
        question, found = adapter.instructions(adapter.appended([_batch(turn) for turn in turns]))[0], list[Encoded]()
        for turn in turns:
            here, count = moved(turn, self.flex.device), len(turn.counts)
            images = tower.with_instructions(here.images, (question,) * count, range(count))
            found.append(replace(here, images=images, instructions=(question,) * count))
        return found

    def decided(
        self, turns: Sequence[Encoded], levels: int | tuple[int, ...] | None, policy: Policy | None
    ) -> tuple[Decision, ...]:
        """One decision per image, oldest first.

        Args:
            turns: from `at_hand`.
        """
        images, instructions, layouts, sizes = (
            tuple(one for turn in turns for one in getattr(turn, name))
            for name in ("images", "instructions", "layouts", "sizes")
        )
        counts = torch.cat([turn.counts for turn in turns])
        return encoding.decide(self.flex, Encoded(images, instructions, counts, None, layouts, sizes), levels, policy)

    def prompt(self, turns: Sequence[Encoded], levels: Sequence[int]) -> Prompt:
        """All turns as one row, every image at its level.

        Args:
            turns: from `at_hand`.
        """
        adapter, tower = self.flex.adapter, tower_of(self.flex.adapter, self.flex.compressor)
        chosen, first = list[Chosen](), 0
        for turn in turns:
            batch, own = _batch(turn), levels[first : first + len(turn.counts)]
            first += len(own)
            chosen.append(tower.chosen(turn, batch, own) if own else Chosen(batch, (), ()))
        merged = adapter.appended([one.batch for one in chosen])
        starts = _starts([one.batch for one in chosen])
        begins = [start + int(s.at[0]) for one, start in zip(chosen, starts, strict=True) for s in one.batch.spans]
        places = [int(span.at[0]) for span in merged.spans]
        where = [places.index(begin) for begin in begins]  # of every image, its number in the merged batch
        back = sorted(range(len(where)), key=where.__getitem__)
        images, scaled = ([each for one in chosen for each in getattr(one, name)] for name in ("images", "scaled"))
        images, scaled = [images[i] for i in back], [scaled[i] for i in back]
        spliced = adapter.splice(merged, images, scaled, "left")
        order = sorted(range(len(begins)), key=begins.__getitem__)
        length = sum(_batch(turn).cpu["input_ids"].shape[1] for turn in turns)
        tokens = [spliced.tokens[place] for place in where]
        return Prompt(spliced, order, tokens, length, merged, images, scaled, where)


def bytes_of(turns: Sequence[Encoded]) -> int:
    """What the features of the turns' images take."""
    return sum(one.numel() * one.element_size() for turn in turns for one in _held(turn.images))


def moved(turn: Encoded, device: torch.device) -> Encoded:
    """A turn with its images' features on a device."""
    if all(one.device == device for one in _held(turn.images)):
        return turn
    made = {name: value for name, value in turn.made.items() if name == "resized"}
    made = {name: {key: _moved(one, device) for key, one in value.items()} for name, value in made.items()}
    return replace(turn, images=tuple(_moved(image, device) for image in turn.images), made=made)


def _moved(image: VisualTokens, device: torch.device) -> VisualTokens:
    names = ("features", "separators", "attention", "keys")
    fields = {name: value.to(device) for name in names if (value := getattr(image, name)) is not None}
    return replace(image, **fields, planes=tuple(plane.to(device) for plane in image.planes), instruction=None)


def _held(images: Iterable[VisualTokens]) -> list[Tensor]:
    """The tensors of some images."""
    fields = [(one.features, *one.planes, one.separators, one.attention, one.keys) for one in images]
    return [tensor for each in fields for tensor in each if tensor is not None]


def _batch(turn: Encoded) -> HostBatch:
    if turn.batch is None:
        raise ValueError("a turn has what was read of it")
    return turn.batch


def _starts(batches: Sequence[HostBatch]) -> list[int]:
    """Where every turn begins in the row of all."""
    found = [0]
    for batch in batches[:-1]:
        found.append(found[-1] + batch.cpu["input_ids"].shape[1])
    return found


def _without_values(name: str, value: Any, batch: HostBatch) -> Any:
    """A tensor of the same shape that takes no memory, in place of pixels; other inputs as they are."""
    if isinstance(value, Tensor) and value.is_floating_point() and name not in batch.cpu:
        return value.new_zeros(()).expand(value.shape)
    return value

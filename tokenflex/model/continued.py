"""``generate`` behind a filled cache: text alone, or a turn with images of its own, which are shortened.

The ids begin with what the cache holds, where earlier images have the placeholders of their levels; behind that, new
images have all of theirs, as the processor wrote them. What the cache holds stays as it is.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Decision, Spliced
from tokenflex.errors import InputError
from tokenflex.hosts import continuing, stock
from tokenflex.hosts.appending import IDS, MASK, PER_TOKEN
from tokenflex.hosts.architectures import looks_ahead
from tokenflex.hosts.continuing import NOTE
from tokenflex.hosts.placeholders import POSITIONS
from tokenflex.model import callbacks, door, generation

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
    from tokenflex.model.request import Budgets, Level
else:
    FlexModel = Level = Budgets = Any


def generate(
    flex: FlexModel, batch: Mapping[str, Any], held: int, level: Level, budget: Budgets, options: Mapping[str, Any]
) -> Any:
    """What the host generates, as `FlexModel.generate` gives it.

    Args:
        batch: with an attention mask, and the cache.
        held: tokens that the cache holds.
        level, budget: of the new images.
        options: of ``generate``.

    Raises:
        InputError: the ids don't continue what the cache holds; or images come with a cache that this model didn't
            fill, or to a host where earlier tokens depend on later ones.
    """
    if door.visual_inputs(batch, flex.adapter):
        return _with_images(flex, batch, held, level, budget, options)
    flex.nothing_to_choose(batch, level, budget)
    continuing.require_continuation(batch, held, flex.adapter, new_only=False)
    placed = continuing.positions(batch, held, flex.adapter, new_only=False)
    output = flex.host.generate(**batch, **placed, **options)
    if isinstance(output, ModelOutput):
        continuing.pass_on(batch, output)
        generation.add_compact(output, output["sequences"], batch[MASK], batch[IDS].shape[1])
        output["decisions"] = ()
    return output


def _with_images(
    flex: FlexModel, batch: Mapping[str, Any], held: int, level: Level, budget: Budgets, options: Mapping[str, Any]
) -> Any:
    _require_known(flex, batch, held)
    continuing.require_beginning(batch, held)
    turn = {name: value[:, held:] if name in PER_TOKEN else value for name, value in batch.items()}
    turn = {name: value for name, value in turn.items() if name not in continuing.CACHES}
    rows, decisions = flex.in_rows(turn, level, "left", budget)
    whole = _behind(flex, batch, rows.whole, held)
    name = continuing.name_of_cache(batch)
    own, ids = getattr(flex.host, "generation_config", None), whole.inputs[IDS]
    options = generation.lengths(options, own, batch[IDS].shape[1] - ids.shape[1])
    options = callbacks.in_the_callers_prompt(options, batch[IDS], ids, own)
    output = flex.host.generate(**whole.inputs, **{name: batch[name]}, **options)
    for found in (batch, output if isinstance(output, ModelOutput) else {}):
        continuing.remember(continuing.cache_of(found), whole.inputs, flex.adapter)
    return generation.restore(output, batch[IDS], whole, tuple[Decision, ...](decisions))


def _require_known(flex: FlexModel, batch: Mapping[str, Any], held: int) -> None:
    if getattr(continuing.cache_of(batch), NOTE, None) is None:
        raise InputError(
            f"images came with a cache of {held} tokens that this model didn't fill, so it isn't known where they "
            "stand. Continue from the cache of an earlier output of this model, or begin without one."
        )
    reason = looks_ahead(stock.base_of(flex.host).config)
    if reason is not None:
        raise InputError(
            f"images can't be put behind a cache of this host, since {reason}: what the cache holds would be another. "
            "Begin without a cache, with the whole conversation."
        )


def _behind(flex: FlexModel, batch: Mapping[str, Any], turn: Spliced, held: int) -> Spliced:
    """A shortened turn behind what the cache holds.

    Args:
        batch: as the caller gave it.
        turn: padded on the left, so that padding may stand between what is held and the turn.
    """
    inputs = dict(turn.inputs)
    for name in PER_TOKEN:
        if name in inputs:
            before = batch[name] if name in batch else torch.zeros_like(batch[IDS])
            inputs[name] = torch.cat([before[:, :held].to(inputs[name]), inputs[name]], dim=1)
    for name in flex.adapter.position_inputs:
        inputs.pop(name, None)
    placed = flex.adapter.position_ids(turn.inputs)
    if placed is not None and placed.dim() == 3:
        before = {**batch, IDS: batch[IDS][:, : held + 1], MASK: batch[MASK][:, : held + 1]}
        known = continuing.positions(before, held, flex.adapter, new_only=False)[POSITIONS].to(placed)
        real = (batch[MASK][:, held] != 0).to(placed)  # the next position, whether or not a row pads there
        following = known[..., held] + (1 - real)
        inputs[POSITIONS] = torch.cat([known[..., :held], placed + following[..., None]], dim=-1)
    index = torch.cat([torch.arange(held).expand(len(turn.index), -1), _moved(turn.index, held)], dim=1)
    return Spliced(inputs, turn.tokens, index)


def _moved(index: Tensor, held: int) -> Tensor:
    """Positions in the turn as positions in the caller's sequence; what has none keeps -1."""
    return torch.where(index < 0, index, index + held)

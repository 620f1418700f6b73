"""Outputs at the positions of the caller's sequence, for clients that compare them with the ids they passed.

The host sees a shorter sequence. With ``align="input"`` what it gives per token is laid out over the caller's
positions (see `tokenflex.model.columns`), and positions without a token hold zeros. Only logits that were asked for
are computed. `Backbone` gives hidden states alone, without any logits.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from tokenflex.errors import InputError, UnsupportedHostError
from tokenflex.hosts import continuing, grouped, stock
from tokenflex.hosts.grouped import IDS, KEEP, LABELS, Rows
from tokenflex.model import columns, door, request
from tokenflex.model.config import ALIGN
from tokenflex.model.door import SHIFTED

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
    from tokenflex.model.request import Budgets, Level
else:
    FlexModel = Level = Budgets = Any

OF_HEAD = (LABELS, SHIFTED, KEEP, grouped.SHARE)
"""Inputs of a host that are read behind its backbone."""


def asked(align: str | None, config: Any) -> bool:
    """Whether outputs are to stand at the caller's positions.

    Args:
        align: of the call; None: as the config says.

    Raises:
        InputError: it is no way to align outputs.
    """
    if align is not None and align not in ALIGN:
        raise InputError(f"align={align!r:.200}; use one of {', '.join(map(repr, ALIGN))}.")
    return (config.align if align is None else align) == "input"


def unchanged(rows: Rows) -> bool:
    """Whether nothing was dropped, so that columns are positions."""
    return rows.whole.inputs[IDS] is rows.batch.inputs[IDS]


def refuse_loss_outside(rows: Rows, batch: Mapping[str, Any]) -> None:
    """Refuse compact logits to who is about to compare them with labels at the caller's positions.

    ``Trainer`` takes the labels out of a batch that its ``label_smoothing_factor`` or ``compute_loss_func`` is to
    judge, and leaves the number of its labels.

    Raises:
        InputError: it does so here, and images have fewer tokens.
    """
    labelled = batch.get(LABELS) is not None or batch.get(SHIFTED) is not None
    if batch.get(grouped.SHARE) is not None and not labelled and not unchanged(rows):
        raise InputError(
            f"{grouped.SHARE} came without labels, so the loss is computed outside the model (label_smoothing_factor, "
            "compute_loss_func), with labels that are longer than the logits of the shortened sequence. Set "
            "flex.config.align = 'input', and logits stand at the positions of the labels."
        )


def shifted(rows: Rows) -> dict[str, Any]:
    """``shift_labels`` shortened with the rest; empty where there are none.

    Raises:
        InputError: one of them stands where a placeholder would have to be predicted.
    """
    stored = rows.batch.inputs.get(SHIFTED)
    if stored is None or unchanged(rows):
        return {}
    return {SHIFTED: columns.shortened(stored, columns.of_positions(rows), rows.length)}


def forward(flex: FlexModel, rows: Rows, batch: Mapping[str, Any]) -> Any:
    """The host's output, at the caller's positions.

    Args:
        batch: as the caller gave it.

    Raises:
        InputError: attention weights are asked for, or ``logits_to_keep`` names no positions.
        UnsupportedHostError: hidden states aren't one vector per token.
    """
    inputs = {**rows.whole.inputs, **shifted(rows)}
    if unchanged(rows):
        return grouped.forward(rows, inputs, flex.batching)
    _refuse_attentions(rows, inputs)
    named = inputs.get("return_dict")
    named = all(rows.setting("return_dict", True)) if named is None else named
    places = columns.of_positions(rows)
    wanted = _wanted(batch, places.shape[1])
    inputs[KEEP], picked = _kept(flex.host, places if wanted is None else places[:, wanted], rows, wanted is None)
    if inputs[KEEP] is None:
        del inputs[KEEP]
    output = grouped.forward(rows, {**inputs, "return_dict": True}, flex.batching)
    if output.get("logits") is not None:
        output["logits"] = columns.laid_out(output["logits"], picked.to(output["logits"].device))
    _lay_out(output, places, rows)
    return output if named else output.to_tuple()


def _wanted(batch: Mapping[str, Any], length: int) -> Tensor | None:
    """The caller's positions whose logits are asked for; None: all.

    Raises:
        InputError: they aren't given as the host takes them.
    """
    keep = batch.get(KEEP)
    if keep is None or (type(keep) is int and keep == 0):
        return None
    if isinstance(keep, Tensor) and keep.dim() == 1 and keep.dtype != torch.bool and not keep.is_floating_point():
        return torch.arange(length)[keep.cpu()]
    if type(keep) is int and keep > 0:
        return torch.arange(max(length - keep, 0), length)
    shown = f"a tensor {tuple(keep.shape)} of {keep.dtype}" if isinstance(keep, Tensor) else repr(keep)
    raise InputError(
        f"logits_to_keep is {shown:.200}; at the caller's positions give how many of the last ones, or a tensor of "
        "positions with one axis."
    )


def _kept(host: Any, places: Int[Tensor, "rows wanted"], rows: Rows, everything: bool) -> tuple[Any, Tensor]:
    """(``logits_to_keep`` for the host, the column of its logits for every position that is wanted).

    The host computes no more logits than are wanted, where it can be told so.

    Args:
        places: columns of the shortened batch.
    """
    taken = "logits_to_keep" in inspect.signature(type(stock.base_of(host)).forward).parameters
    if everything or not taken or places.shape[1] == 0:
        return None, places
    first = int(places.clamp(min=0).min())
    if bool((places == torch.arange(first, rows.length)[None]).all() if places.shape[1] == rows.length - first else 0):
        return rows.length - first, torch.arange(places.shape[1]).expand_as(places)
    device = rows.whole.inputs[IDS].device
    if hasattr(transformers.modeling_utils, "slice_logits_to_keep"):  # then every row can have its own
        numbered = torch.arange(places.shape[1]).expand_as(places)
        return places.clamp(min=0).to(device), numbered.masked_fill(places == columns.NONE, columns.NONE)
    some = places.clamp(min=0).unique()
    return some.to(device), torch.searchsorted(some, places.clamp(min=0)).masked_fill(places < 0, columns.NONE)


def _refuse_attentions(rows: Rows, inputs: Mapping[str, Any]) -> None:
    wanted = inputs.get("output_attentions")
    if wanted or (wanted is None and any(rows.setting("output_attentions"))):
        raise InputError(
            "output_attentions with align='input': attention is between the tokens of the shortened sequence and has "
            "no counterpart between the caller's. Ask for align='compact', or for the finest level."
        )


def _lay_out(output: ModelOutput, places: Tensor, rows: Rows) -> None:
    """Put hidden states, one or one per layer, at the caller's positions."""
    for name in ("last_hidden_state", "hidden_states"):
        value = output.get(name)
        if value is None:
            continue
        layers = [value] if isinstance(value, Tensor) else list(value)
        if any(layer.shape[:2] != (rows.count, rows.length) for layer in layers):
            raise UnsupportedHostError(
                f"{name} of {rows.adapter.model_type!r} has the shape {tuple(layers[0].shape)}, not one vector per "
                "token, and can't be put at the caller's positions. Ask for align='compact'."
            )
        made = [columns.laid_out(layer, places.to(layer.device)) for layer in layers]
        output[name] = made[0] if isinstance(value, Tensor) else type(value)(made)


class Backbone(nn.Module):
    """A FlexModel without its head: takes the caller's batch and gives hidden states at the caller's positions.

    It is made when it is asked for, isn't among the model's modules, and owns nothing; its parameters are those of the
    host's own backbone, whose attributes it also answers for.

    Args:
        flex: the model.
    """

    def __init__(self, flex: FlexModel) -> None:
        super().__init__()
        self.__dict__["flex"] = flex
        base = stock.base_of(flex.host)
        self.of_host = getattr(base, "base_model", base)  # a host of the user's own may be any module

    def __getattr__(self, name: str) -> Any:
        """What else is asked of it is the attribute of the host's own model without head."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "of_host":
                raise
            return getattr(self.of_host, name)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        level: Level = None,
        budget: Budgets = None,
        **inputs: Any,
    ) -> Any:
        """Hidden states, plus ``decisions``; no logits are computed.

        Args:
            input_ids, attention_mask, level, budget, inputs: as for `FlexModel.forward`; labels aren't taken.

        Returns:
            ``last_hidden_state``: ``(rows, length, dim)``, 0 where a position has no output.

        Raises:
            InputError: as `FlexModel.forward`, or labels came with the batch.
            UnsupportedHostError: the host gives no hidden states apart from logits.
        """
        flex = self.__dict__["flex"]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        batch = {key: value for key, value in batch.items() if value is not None}
        wrong = [name for name in OF_HEAD if name in batch]
        if wrong:
            raise InputError(f"{', '.join(wrong)}: the backbone has no head. Call the model itself with it.")
        request.check(flex, inputs, level, budget)
        held = continuing.held_by(batch)
        door.check(batch, flex.adapter, held)
        if input_ids is None or held or not door.shortens(batch):
            return self._run(flex.as_it_is(batch, held, level, budget))
        rows, decisions = flex.in_rows(batch, level, None, budget)
        output = self._run(rows.whole.inputs) if unchanged(rows) else self._in_groups(rows)
        continuing.remember(continuing.cache_of(output), rows.whole.inputs, flex.adapter)
        output["decisions"] = decisions
        return output

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        """Hidden states of inputs as the host takes them; of hosts without a backbone the last of all layers'."""
        host = stock.base_of(self.__dict__["flex"].host)
        if self.of_host is not host:
            output = self.of_host(**{**inputs, "return_dict": True})
            if getattr(output, "last_hidden_state", None) is not None:
                return output
        output = host(**{**inputs, "return_dict": True, "output_hidden_states": True, KEEP: 1})
        states = output.get("hidden_states")
        if states is None:
            raise UnsupportedHostError(f"{type(host).__name__} gives no hidden states, so it has no backbone to call.")
        return BaseModelOutputWithPast(last_hidden_state=states[-1], **_cache(output))

    def _in_groups(self, rows: Rows) -> Any:
        """Hidden states at the caller's positions, in groups where that is cheaper and nothing else is wanted."""
        places = columns.of_positions(rows)
        _refuse_attentions(rows, rows.whole.inputs)
        groups = grouped.backbone_parts(rows, self.__dict__["flex"].batching)
        if not groups:
            output = self._run(rows.whole.inputs)
            _lay_out(output, places, rows)
            return output
        found, order = list[Tensor](), list[int]()
        for group, inputs, before in groups:
            state: Tensor = self._run(inputs).last_hidden_state
            own = torch.where(places[group] == columns.NONE, columns.NONE, places[group] - before)
            found.append(columns.laid_out(state, own.to(state.device)))
            order += group
        where = torch.tensor(order).argsort().to(found[0].device)
        return BaseModelOutputWithPast(last_hidden_state=torch.cat(found)[where])


def _cache(output: Any) -> dict[str, Any]:
    return (
        {} if continuing.cache_of(output) is None else {continuing.name_of_cache(output): continuing.cache_of(output)}
    )


class Headless:
    """What a FlexModel answers to who asks for the model without its head."""

    host: Any

    @property
    def base_model(self) -> Any:
        """The model without its head: called with the caller's batch, it gives hidden states at its positions."""
        return Backbone(self) if self.__dict__.get("_modules", {}).get("host") is not None else self  # pyright: ignore[reportArgumentType]

    def get_decoder(self) -> Any:
        """The same as `base_model`."""
        return self.base_model

    def get_encoder(self, modality: str | None = None) -> Any:
        """The host's, by ``image``, ``video`` or ``audio``; this model itself where the host has none."""
        host = stock.base_of(self.host)
        found = host.get_encoder(modality)
        return self if found is host else found

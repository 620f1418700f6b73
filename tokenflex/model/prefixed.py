"""Images behind a prefix: learnt keys and values in a cache before the prompt, as PEFT's prefix tuning has it.

What a `FlexModel` filled a cache with is noted on the cache (`tokenflex.hosts.continuing`); a cache without a note
that comes together with images is a prefix. The prompt is shortened behind it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import HostAdapter
from tokenflex.errors import InputError
from tokenflex.hosts import stock
from tokenflex.hosts.continuing import CACHES, NOTE, cache_of
from tokenflex.model import aligned, generation

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
    from tokenflex.model.request import Budgets, Level
else:
    FlexModel = Level = Budgets = Any


def is_prefix(batch: Mapping[str, Any], held: int, shown: bool, adapter: HostAdapter) -> bool:
    """Whether the batch's cache is a prefix before its images.

    Hosts whose positions have axes (M-RoPE) place images by the whole prompt and take no prefix themselves.

    Args:
        held: tokens that the cache holds.
        shown: whether the batch has images.
    """
    known = getattr(cache_of(batch), NOTE, None) is not None
    return held > 0 and shown and not known and not adapter.position_inputs and batch.get("input_ids") is not None


def forward(flex: FlexModel, batch: Mapping[str, Any], held: int, level: Level, budget: Budgets, align: bool) -> Any:
    """The host's output for a prompt that is shortened behind a prefix, plus ``decisions``.

    Args:
        batch: with the prefix as its cache; its mask covers prefix and prompt, or the prompt alone.
        held: tokens of the prefix.
        level, budget: as for `FlexModel.forward`.
        align: whether outputs are wanted at the caller's positions.

    Raises:
        InputError: they are.
    """
    if align:
        raise InputError(
            f'align="input" lays outputs out over the caller\'s sequence, and a prefix of {held} tokens stands before '
            "it in a cache. Leave align out, or put the prefix into the host: "
            "tokenflex.wrap(get_peft_model(host, PrefixTuningConfig(...)))."
        )
    prompt = _without_prefix(batch)
    model: Any = flex
    rows, decisions = model.in_rows(prompt, level, None, budget)
    inputs = {**generation.with_logits(rows.whole, prompt), **aligned.shifted(rows)}
    output = flex.host(**_behind_prefix(inputs, batch, held))
    if isinstance(output, ModelOutput):
        output["decisions"] = decisions
    return output


def require_own_preparation(flex: FlexModel) -> None:
    """Refuse to generate where PEFT has put its own preparation of inputs onto a `FlexModel`, as prompt learning does.

    The host generates and would never call it.

    Raises:
        InputError: says where prompt learning belongs.
    """
    name = "prepare_inputs_for_generation"
    own = getattr(stock.base_of(flex.host), name, None)
    if flex.__dict__.get(name, own) != own:
        raise InputError(
            "prepare_inputs_for_generation of this model was replaced, as by PEFT's prompt learning around it, and "
            "generate() runs the host's. Put the learnt prompt into the host: "
            "tokenflex.wrap(get_peft_model(host, config)), or PeftModel.from_pretrained(host, folder) in place of the "
            "host. Training around a FlexModel works."
        )


def _without_prefix(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without its cache, and with a mask of the prompt alone."""
    prompt = {name: value for name, value in batch.items() if name not in CACHES}
    mask, length = batch.get("attention_mask"), batch["input_ids"].shape[1]
    if isinstance(mask, Tensor) and mask.dim() == 2:
        prompt["attention_mask"] = mask[:, -length:]
    return prompt


def _behind_prefix(inputs: Mapping[str, Any], batch: Mapping[str, Any], held: int) -> dict[str, Any]:
    """The host's inputs of a shortened prompt, put behind the prefix again.

    Args:
        inputs: of the host, made from `_without_prefix`.
        batch: with the prefix.
        held: tokens of the prefix.
    """
    caches = {name: batch[name] for name in CACHES if name in batch}
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    own = torch.ones_like(ids) if mask is None else mask
    own_mask, length = batch.get("attention_mask"), batch["input_ids"].shape[1]
    before = own.new_ones(len(ids), held)
    if isinstance(own_mask, Tensor) and own_mask.dim() == 2 and own_mask.shape[1] == held + length:
        before = own_mask[:, :held]
    return {**inputs, **caches, "attention_mask": torch.cat([before.to(own), own], dim=1)}

"""What surrounds a call of the host's ``generate`` on a shortened batch."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Decision, Spliced
from tokenflex.errors import InputError
from tokenflex.hosts.continuing import CACHES
from tokenflex.hosts.placeholders import SEQUENCE_KEYS
from tokenflex.hosts.refusing import SIZES

OPTIONS = {
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "tokenizer",
    "assistant_tokenizer",
    "use_model_defaults",
}
BATCH = ("mm_encoder_outputs", *SEQUENCE_KEYS, *SIZES)
"""Entries of a batch, even where they are no tensors, as they should be: who reads them says so."""
NO_OPTIONS: Mapping[str, Any] = {}


def split(kwargs: Mapping[str, Any], inputs: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """(batch, options of ``generate``): a batch is tensors, caches and ``inputs``; everything else is an option."""
    batch, options = {}, {}
    for key, value in kwargs.items():
        is_option = key in OPTIONS or not (isinstance(value, Tensor) or key in (*inputs, *CACHES, *BATCH))
        if value is not None or is_option:
            (options if is_option else batch)[key] = value
    return batch, options


def assists(options: Mapping[str, Any]) -> bool:
    """Whether a model proposes tokens to another one, whose batch it is given as that one reads it."""
    return bool(getattr(options.get("generation_config"), "is_assistant", False))


def with_config(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The options, a configuration in force behind them: one that has them, as transformers won't take both for long.

    Args:
        options: of ``generate``; where they hold a configuration already, nothing changes.
    """
    if options.get("generation_config") is not None:
        return dict(options)
    merged = copy.deepcopy(config)
    if options.get("cache_implementation") == "paged":  # which transformers looks for among the options alone
        return {**options, "generation_config": merged}
    rest = merged.update(**{name: value for name, value in options.items() if name != "generation_config"})
    return {**rest, "generation_config": merged}


def with_mask(batch: Mapping[str, Any], host: Any, options: Mapping[str, Any] = NO_OPTIONS) -> Mapping[str, Any]:
    """The batch with the attention mask that ``generate`` infers from padding where none is given.

    Like transformers, which leaves padding out by its id unless that id also ends answers.

    Args:
        options: of ``generate``; those of the host's own generation config where they say nothing.
    """
    ids = batch.get("input_ids")
    if batch.get("attention_mask") is not None or ids is None:
        return batch
    own_config = options.get("generation_config")
    config = getattr(host, "generation_config", None) if own_config is None else own_config

    def setting(name: str) -> Any:
        return options[name] if options.get(name) is not None else getattr(config, name, None)

    pad, ends = setting("pad_token_id"), setting("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list | tuple) else [ends]
    pad_known = isinstance(pad, int) and pad not in ends
    mask = ids.ne(pad) if pad_known else torch.ones_like(ids, dtype=torch.bool)
    return {**batch, "attention_mask": mask.long()}


def with_logits(spliced: Spliced, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The host's inputs, once it is sure that ``logits_to_keep`` names the same tokens as in the caller's sequence.

    Raises:
        InputError: it would name other tokens.
    """
    wanted, ids = batch.get("logits_to_keep"), batch["input_ids"]
    if wanted is None or spliced.inputs["input_ids"] is ids:
        return spliced.inputs
    count = int(wanted) if isinstance(wanted, int) or wanted.dim() == 0 else None
    if count is not None:
        length = ids.shape[1]
        last = torch.arange(max(length - count, 0), length)
        kept = spliced.index[:, -count:] if count else spliced.index[:, :0]
        if count == 0 or (kept.shape[1] == len(last) and bool((kept.cpu() == last).all())):
            return spliced.inputs
    raise InputError(
        f"logits_to_keep={wanted if count is not None else 'a tensor'} names positions of the full sequence, and "
        "images of fewer tokens have moved or replaced them. Leave it out and pick from the logits, or give a number "
        "of tokens behind the last image."
    )


def lengths(options: Mapping[str, Any], default: Any, dropped: int) -> dict[str, Any]:
    """``max_length`` and ``min_length`` less the tokens that were dropped from the prompt.

    Args:
        default: the model's own generation config, in force where ``options`` has none.
    """
    out = dict(options)
    own_config = out.get("generation_config")
    config = default if own_config is None else own_config
    for key, newer in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if out.get(newer) is not None or getattr(config, newer, None) is not None:
            continue
        wanted = out.get(key) if out.get(key) is not None else getattr(config, key, None)
        if wanted is None or dropped == 0:
            continue
        if out.get(key) is not None or own_config is None:
            out[key] = max(wanted - dropped, 0)
        else:
            own_config = out["generation_config"] = copy.deepcopy(own_config)
            setattr(own_config, key, max(wanted - dropped, 0))
    return out


def restore(output: Any, prompt: Tensor, spliced: Spliced, decisions: Sequence[Decision]) -> Any:
    """Put the caller's prompt back in front of the new tokens."""
    compact_length = spliced.inputs["input_ids"].shape[1]

    def full(sequences: Tensor) -> Tensor:
        copies = sequences.shape[0] // prompt.shape[0]
        front = prompt.repeat_interleave(copies, dim=0).to(sequences.device)
        return torch.cat([front, sequences[:, compact_length:]], dim=1)

    if not isinstance(output, ModelOutput):
        return full(output)
    compact: Tensor = output["sequences"]
    mask = spliced.inputs.get("attention_mask")
    mask = torch.ones_like(spliced.inputs["input_ids"]) if mask is None else mask
    output["sequences"] = full(compact)
    add_compact(output, compact, mask, compact_length)
    output["decisions"] = tuple(decisions)
    return output


def add_compact(output: ModelOutput, compact: Tensor, mask: Tensor, prompt_length: int) -> None:
    """Put the ids that match the cache into an output, and their mask.

    Args:
        compact: ``(rows, length)``, the shortened prompt and what was generated.
        mask: of the shortened prompt.
        prompt_length: tokens of that prompt.
    """
    mask = mask.repeat_interleave(compact.shape[0] // mask.shape[0], dim=0)
    added = mask.new_ones(len(mask), compact.shape[1] - prompt_length)
    output["compact_sequences"] = compact
    output["compact_attention_mask"] = torch.cat([mask, added], dim=1)

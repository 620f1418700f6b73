"""What surrounds a call of the host's ``generate`` on a shortened batch."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Decision, Spliced
from tokenflex.errors import InputError

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


CACHES = ("past_key_values", "cache")
"""Names of a filled cache; the second is the newer one."""


def split(kwargs: Mapping[str, Any], inputs: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """(batch, options of ``generate``): a batch is tensors, caches and ``inputs``; everything else is an option."""
    batch, options = {}, {}
    for key, value in kwargs.items():
        is_option = key in OPTIONS or not (isinstance(value, Tensor) or key in inputs or key in CACHES)
        if value is not None or is_option:
            (options if is_option else batch)[key] = value
    return batch, options


def continues_cache(batch: Mapping[str, Any]) -> bool:
    """Whether the batch continues from a filled cache, which already holds the images.

    Raises:
        InputError: images come with the cache, or the ids are shorter than what it holds.
    """
    cache = next((batch[key] for key in CACHES if batch.get(key) is not None), None)
    held = int(cache.get_seq_length()) if cache is not None else 0
    if held == 0:
        return False
    if batch.get("pixel_values") is not None:
        raise InputError(
            f"past_key_values already holds {held} tokens, the images among them; pass no pixel_values with it. "
            "To continue a conversation give generate() the earlier output's compact_sequences, extended by the "
            "new turn, as input_ids, and compact_attention_mask alike."
        )
    return True


def lengths(options: Mapping[str, Any], default: Any, dropped: int) -> dict[str, Any]:
    """``max_length`` and ``min_length`` less the tokens that were dropped from the prompt.

    Args:
        default: the model's own generation config, in force where ``options`` has none.
    """
    out = dict(options)
    given = out.get("generation_config")
    config = default if given is None else given
    for key, newer in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if out.get(newer) is not None or getattr(config, newer, None) is not None:
            continue
        wanted = out.get(key) if out.get(key) is not None else getattr(config, key, None)
        if wanted is None or dropped == 0:
            continue
        if out.get(key) is not None or given is None:
            out[key] = max(wanted - dropped, 0)
        else:
            given = out["generation_config"] = copy.deepcopy(given)
            setattr(given, key, max(wanted - dropped, 0))
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
    mask = mask.repeat_interleave(compact.shape[0] // mask.shape[0], dim=0)
    added = mask.new_ones(len(mask), compact.shape[1] - compact_length)
    output["sequences"] = full(compact)
    output["compact_sequences"] = compact
    output["compact_attention_mask"] = torch.cat([mask, added], dim=1)
    output["decisions"] = tuple(decisions)
    return output

"""Several shortened batches as one packed row: no padding, and one pass through the host for all of them.

transformers keeps packed samples apart by positions that start again, but only without an attention mask and without a
cache; with either it mixes them silently. Which hosts do so faithfully is measured by the law ``packed`` (see
`tokenflex.testing.host_checks`); adapters refuse the others (`HostAdapter.packing_refusal`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import HostAdapter, HostInputs
from tokenflex.errors import InputError
from tokenflex.hosts.placeholders import IGNORE, POSITIONS, TOKEN_KEYS

MASK, ENCODED = "attention_mask", "mm_encoder_outputs"
SHARED = ("visual_indicator_features",)
"""Fields of encoder outputs that are the same for all batches."""


def pack(adapter: HostAdapter, batches: Sequence[HostInputs]) -> dict[str, Any]:
    """One row that holds every row of every batch, in order; labels never reach across a seam.

    Args:
        batches: as `HostAdapter.splice` made them, of the same host.

    Returns:
        Keyword arguments for the host's ``forward``, with ``position_ids`` that start again for every row and the rows'
        ends as ``cu_seq_lens_q`` (see `tokenflex.hosts.varlen`).

    Raises:
        InputError: the host's rows can't be packed, or a batch has an input of unknown layout.
    """
    reason = adapter.packing_refusal
    if reason:
        raise InputError(f"{adapter.model_type}: rows can't be packed into one, because {reason}.")
    flat = [_flat(adapter, batch) for batch in batches]
    lengths = torch.cat([lengths for _, lengths in flat])
    packed: dict[str, Any] = {key: torch.cat([tokens[key] for tokens, _ in flat], dim=-1) for key in flat[0][0]}
    outputs = [batch[ENCODED] for batch in batches if batch.get(ENCODED)]
    if outputs:
        packed[ENCODED] = {key: _joined([o[key] for o in outputs if key in o]) for key in _keys(outputs)}
    return packed | {"use_cache": False} | _ends(lengths, packed["input_ids"].device)


def _flat(adapter: HostAdapter, batch: HostInputs) -> tuple[dict[str, Tensor], Tensor]:
    """The batch's real tokens as one row, and the length of each of its rows."""
    ids, mask = batch["input_ids"], batch.get(MASK)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    known = {"input_ids", MASK, POSITIONS, ENCODED, *TOKEN_KEYS, *adapter.position_inputs}
    unknown = [key for key, value in batch.items() if key not in known and value is not None]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: it isn't known how this input is packed. Leave it out.")
    tokens = {"input_ids": ids[real][None]}
    for key in TOKEN_KEYS:
        if batch.get(key) is not None:
            tokens[key] = batch[key][real][None]
    lengths = real.sum(-1)
    begins = lengths.cumsum(0) - lengths
    steps = torch.arange(tokens["input_ids"].shape[1], device=ids.device)
    steps = steps - begins.repeat_interleave(lengths, output_size=len(steps))
    if "labels" in tokens:
        tokens["labels"] = tokens["labels"].masked_fill(steps[None] == 0, IGNORE)
    axes = adapter.position_ids(batch)
    tokens[POSITIONS] = steps[None]
    if axes is not None:
        placed = axes[..., real]
        tokens[POSITIONS] = torch.cat([steps[None].to(placed), placed[-3:]])[:, None]
    return tokens, lengths


def _keys(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for output in outputs for key in output))


def _joined(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """What the encoder made, batch after batch."""
    first = outputs[0]
    fields = {
        name: value if name in SHARED else _chained([output[name] for output in outputs])
        for name, value in first.items()
        if value is not None
    }
    return type(first)(**fields)


def _chained(values: Sequence[Any]) -> Any:
    """Tensors joined along the first axis; lists of entries joined; what holds layers, layer by layer."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if not isinstance(values[0], Sequence):
        return values[0]
    if isinstance(values[0][0], Tensor):
        return [entry for value in values for entry in value]
    return [_chained(layer) for layer in zip(*values, strict=True)]


def _ends(lengths: Tensor, device: torch.device) -> dict[str, Any]:
    """Where rows end, in the names transformers gives to packed attention."""
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

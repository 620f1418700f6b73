"""Going on from a filled cache: what of the first call later ones depend on travels with the cache itself.

A cache holds the shortened prompt. Hosts whose positions have axes (M-RoPE) keep the offset between tokens and
positions in the model, where the next call of anybody overwrites it; here it is kept on the cache, so that no result
depends on earlier calls. The prompt's ids are kept too, to tell a continuation that fits the cache from one that
doesn't.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import HostAdapter
from tokenflex.errors import InputError

CACHES = ("cache", "past_key_values")
"""Names of a cache; transformers 5.24 renamed the second to the first."""
NOTE = "tokenflex_prompt"
"""Attribute of a cache that holds its `Prompt`."""
REMEDY = (
    "To continue a conversation give generate() the earlier output's compact_sequences, extended by the new turn, as "
    "input_ids, compact_attention_mask, extended alike, as attention_mask, and its cache."
)


@dataclass(frozen=True)
class Prompt:
    """The shortened prompt that a cache was filled with.

    Attributes:
        ids: ``(rows, length)``.
        inputs: what its positions follow from; empty for hosts that simply count.
    """

    ids: Int[Tensor, "rows length"]
    inputs: Mapping[str, Any]


def cache_of(values: Any) -> Any:
    """The cache of a batch or an output, whichever name it has; None without one."""
    there = [name for name in CACHES if name in values.keys()]  # noqa: SIM118 (asking by the older name warns)
    return next((values[name] for name in there if values[name] is not None), None)


def name_of_cache(values: Any) -> str:
    """The name that a cache has in an output."""
    return next(name for name in CACHES if name in values.keys())  # noqa: SIM118 (as above)


def held_by(batch: Mapping[str, Any]) -> int:
    """Tokens that the batch's cache holds; 0 without a cache, or with an empty one."""
    cache = cache_of(batch)
    return int(cache.get_seq_length()) if cache is not None else 0


def remember(cache: Any, inputs: Mapping[str, Any], adapter: HostAdapter) -> None:
    """Keep on a cache what it was filled with.

    Args:
        cache: may be None.
        inputs: of the host, as spliced.
    """
    if cache is None:
        return
    small = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() <= 3}
    setattr(cache, NOTE, Prompt(inputs["input_ids"], small if adapter.position_inputs else {}))


def pass_on(batch: Mapping[str, Any], output: Any) -> None:
    """Keep what is known of a batch's cache on the cache of an output that went on from it."""
    note, cache = getattr(cache_of(batch), NOTE, None), cache_of(output)
    if note is not None and cache is not None:
        setattr(cache, NOTE, note)


def require_continuation(batch: Mapping[str, Any], held: int, adapter: HostAdapter, new_only: bool) -> None:
    """Refuse ids that don't continue what the cache holds.

    Args:
        new_only: ids are the new tokens only, as for ``forward``; otherwise they begin with what the cache holds.

    Raises:
        InputError: the new tokens hold placeholders, or the ids begin with something else than the cache.
    """
    ids = batch["input_ids"]
    fresh = ids if new_only else ids[:, held:]
    _require_new(ids, 0 if new_only else held, held)
    tokens = torch.tensor(adapter.placeholder_ids, device=ids.device, dtype=ids.dtype)
    count = int(torch.isin(fresh, tokens).sum())
    if count:
        raise InputError(
            f"{count} image placeholders stand behind the {held} tokens that the cache holds, and no image comes with "
            f"them: these ids are longer than the shortened prompt in the cache. {REMEDY}"
        )
    if not new_only:
        require_beginning(batch, held)


def require_beginning(batch: Mapping[str, Any], held: int) -> None:
    """Refuse ids that begin with something else than the cache.

    Raises:
        InputError: they do, as far as it is known what the cache was filled with, or there is no new token.
    """
    ids, note = batch["input_ids"], getattr(cache_of(batch), NOTE, None)
    _require_new(ids, held, held)
    if note is None:
        return
    length = min(held, note.ids.shape[1], ids.shape[1])
    before = _rows(note.ids, len(ids))[:, :length].to(ids.device)
    if not torch.equal(before, ids[:, :length]):
        raise InputError(f"input_ids don't begin with the {held} tokens that the cache holds. {REMEDY}")


def _require_new(ids: Tensor, known: int, held: int) -> None:
    if ids.shape[1] <= known:
        raise InputError(
            f"input_ids has {ids.shape[1]} tokens and the cache holds {held}, so no new token is left. {REMEDY}"
        )


def positions(batch: Mapping[str, Any], held: int, adapter: HostAdapter, new_only: bool) -> dict[str, Tensor]:
    """``position_ids`` of the new tokens, ``(axes, rows, length)``; empty for hosts that count by themselves.

    Args:
        new_only: as for `require_continuation`.
    """
    note = getattr(cache_of(batch), NOTE, None)
    if note is None or not note.inputs or batch.get("position_ids") is not None:
        return {}
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    length = ids.shape[1] + (held if new_only else 0)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == length:
        counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    else:
        counted = torch.arange(length, device=ids.device).expand(len(ids), -1)
    shift = _rows(_shift(note, adapter).movedim(0, -1), len(ids)).movedim(-1, 0)
    return {"position_ids": (counted[None].to(shift) + shift[..., None])[..., -ids.shape[1] :]}


def _shift(note: Prompt, adapter: HostAdapter) -> Tensor:
    """``(axes, rows)``: by how much the tokens behind the prompt are moved against a plain count."""
    mask = note.inputs.get("attention_mask")
    real = torch.ones_like(note.ids) if mask is None else (mask != 0).long()
    placed = any(name in note.inputs for name in (*adapter.position_inputs, "position_ids"))
    full = adapter.position_ids(note.inputs) if placed else None
    if full is None or full.dim() != 3:
        return torch.zeros(3, len(note.ids), dtype=torch.long, device=note.ids.device)
    columns = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real != 0, columns, 0).amax(-1)
    at_end = full.gather(-1, last.to(full.device).expand(full.shape[0], -1)[..., None])[..., 0]
    return at_end + 1 - real.sum(-1).to(at_end)


def _rows(values: Tensor, rows: int) -> Tensor:
    """Values per row of the prompt, for a batch with several continuations of each."""
    if rows % len(values):
        raise InputError(
            f"input_ids has {rows} rows, and the cache was filled with {len(values)}. Continue all of its rows, in "
            "their order."
        )
    return values.repeat_interleave(rows // len(values), dim=0)

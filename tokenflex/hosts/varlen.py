"""An attention implementation for packed rows that computes what their mask leaves, and nothing else.

``register()`` makes it known to transformers under the name ``varlen``; a host takes it when it is loaded with
``attn_implementation="varlen"``. Rows that aren't packed go through transformers' own sdpa. On CUDA in half precision
it is PyTorch's variable-length flash attention (``torch.nn.attention.varlen``, torch 2.10 or newer); elsewhere one sdpa
call per row, so it works, and can be tested, anywhere.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tokenflex.errors import InputError

NAME = "varlen"
FLASH = importlib.util.find_spec("torch.nn.attention.varlen") is not None
_KNOWN: ContextVar[bool] = ContextVar("told_ends", default=False)


def register() -> str:
    """Make the implementation known to transformers; returns its name. Doing so again changes nothing."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, varlen_mask)
    return NAME


@contextmanager
def known_ends(known: bool) -> Iterator[None]:
    """Within, hosts are told where packed rows end, so that no mask needs to say it."""
    token = _KNOWN.set(known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def varlen_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """sdpa's mask; none for packed rows whose ends attention is told."""
    return None if _KNOWN.get() else sdpa_mask(*args, **kwargs)


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed row; arguments and result as transformers' attention functions have them.

    Args:
        query, key, value: ``(1, heads, length, dim)``, fewer heads for key and value with grouped queries.
        kwargs: ``cu_seq_lens_q``, where packed rows end, and ``max_length_q``, the longest; without them rows aren't
            packed.

    Raises:
        InputError: the host wants something that isn't offered here: a cap on its scores.
    """
    ends = kwargs.get("cu_seq_lens_q")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or ends is None or not causal or len(query) > 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("softcap") is not None:
        raise InputError("varlen attention has no softcap, and this host asks for one; load it with 'flex_attention'.")
    window = kwargs.get("sliding_window")
    if FLASH and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _by_flash(query, key, value, ends, kwargs["max_length_q"], scaling, window), None
    groups = query.shape[1] // key.shape[1]
    rows = zip(*(t.split(ends.diff().tolist(), dim=2) for t in (query, key, value)), strict=True)
    outputs = [_row(q, repeat_kv(k, groups), repeat_kv(v, groups), dropout, scaling, window) for q, k, v in rows]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _row(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    length = query.shape[2]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    back = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
    near = (back >= 0) & (back < window)
    return F.scaled_dot_product_attention(query, key, value, near, dropout_p=dropout, scale=scaling)


def _by_flash(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    size = (-1, 0) if window is None else (window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    rows: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=size, enable_gqa=grouped)
    return rows[None]

"""What a batch must be before anything is done with it: refused by name here, instead of deep inside or not at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenflex.contracts import HostAdapter, HostBatch
from tokenflex.errors import InputError
from tokenflex.hosts import stock
from tokenflex.hosts.placeholders import IGNORE, SEQUENCE_KEYS, TOKEN_KEYS

ENCODED = "mm_encoder_outputs"
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Inputs that say where packed samples begin, in positions of the caller's sequence."""
TEXT = ("input_ids", "inputs_embeds")
TYPES = tuple(name for name in TOKEN_KEYS if name != "labels")
SHIFTED = "shift_labels"
"""Labels that stand at the position which predicts them."""


def visual_inputs(batch: Mapping[str, Any], adapter: HostAdapter) -> list[str]:
    """Names of the batch's images, videos, or what an encoder made of them."""
    known = (*adapter.encoder_inputs, "pixel_values", "pixel_values_videos", ENCODED)
    return [
        name
        for name, value in batch.items()
        if value is not None and (name in known or name.startswith("pixel_values"))
    ]


def shortens(batch: Mapping[str, Any]) -> bool:
    """Whether the batch's mask can be shortened; one of another form, on text alone, is the host's own business."""
    mask = batch.get("attention_mask")
    return mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)


def check(batch: Mapping[str, Any], adapter: HostAdapter, held: int = 0, prefixed: bool = False) -> None:
    """Refuse what can't be shortened without guessing.

    Args:
        batch: as the host's processor made it; entries that are None don't count.
        held: tokens that a filled cache holds already.
        prefixed: whether they are a prefix before the prompt (`tokenflex.model.prefixed`).

    Raises:
        InputError: the message names the input, what was expected, and how to mend it.
    """
    present = {name: value for name, value in batch.items() if value is not None}
    shown = visual_inputs(present, adapter)
    if held and shown and not prefixed:
        raise InputError(
            f"the cache already holds {held} tokens, the images among them; pass no {', '.join(shown)} with it. To "
            "continue a conversation give generate() the earlier output's compact_sequences, extended by the new "
            "turn, as input_ids, and compact_attention_mask alike; there new images may come with it."
        )
    ids = present.get("input_ids")
    if shown and (ids is None or "inputs_embeds" in present):
        raise InputError(
            f"{', '.join(shown)} came {'without input_ids' if ids is None else 'together with inputs_embeds'}: images "
            "are shortened in input_ids, before they are embedded. Pass input_ids as the processor made them, and no "
            "inputs_embeds."
        )
    if ENCODED in shown:
        raise InputError(
            f"{ENCODED} holds images that are encoded already, at the finest level. Pass pixel_values instead, or call "
            "the host itself: flex.host(...)."
        )
    if ids is not None:
        _check_ids(ids)
        _check_labels(present, ids)
        _check_mask(present, ids, held, bool(shown))
    if shown:
        assert isinstance(ids, Tensor)
        _check_types(present, ids)
        _check_positions(present, ids, {*adapter.encoder_inputs, *adapter.position_inputs})


def given_once(inputs: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch, which may come as a mapping or by keywords.

    Raises:
        InputError: it comes in both ways, or as something that is no mapping.
    """
    if inputs is None:
        return named
    if not isinstance(inputs, Mapping):
        raise InputError(f"the batch is a {type(inputs).__name__}; give what the host's processor made: **inputs.")
    if named:
        raise InputError(
            f"the batch came as a {type(inputs).__name__}, and {', '.join(named)} by keywords; give all in one way: "
            "**inputs."
        )
    return inputs


def refuse_whole_batch(batch: Any) -> None:
    """Refuse a whole batch in the place of ids.

    Raises:
        InputError: says how batches are given.
    """
    if isinstance(batch, Mapping):
        raise InputError(
            f"a {type(batch).__name__} with {', '.join(map(str, batch))} came as input_ids; give a batch by keywords: "
            "flex.generate(**inputs)."
        )


def _check_ids(ids: Any) -> None:
    refuse_whole_batch(ids)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        shape = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"input_ids is {shape}; expected integers of shape (rows, length), as the processor made them."
        )
    if ids.numel() == 0:
        raise InputError(f"input_ids has the shape {tuple(ids.shape)}, so nothing is asked. Pass at least one token.")


def _check_mask(batch: Mapping[str, Any], ids: Tensor, held: int, shown: bool) -> None:
    mask = batch.get("attention_mask")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        kind = f"has {mask.dim()} axes" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        if not shown and (mask.dim() > 2 if isinstance(mask, Tensor) else isinstance(mask, Mapping)):
            return  # nothing is shortened, so it is the host's own business
        raise InputError(
            f"attention_mask {kind}; where images are shortened it must be a tensor of (rows, length), 1 for tokens "
            "and 0 for padding, since who sees whom can't be carried over to fewer tokens."
        )
    lengths = {ids.shape[1], ids.shape[1] + held}
    if mask.shape[0] != ids.shape[0] or mask.shape[1] not in lengths:
        raise InputError(
            f"attention_mask has the shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}"
            f"{f' and the cache holds {held} tokens' if held else ''}; give one entry per token."
        )


def _check_labels(batch: Mapping[str, Any], ids: Tensor) -> None:
    for name in ("labels", SHIFTED):
        labels = batch.get(name)
        if labels is not None and (not isinstance(labels, Tensor) or labels.shape != ids.shape):
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(
                f"{name}: {shape}, input_ids {tuple(ids.shape)}; give one label per token, {IGNORE} where nothing is "
                "supervised."
            )
        if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
            raise InputError(f"{name} is {labels.dtype}; give token ids as integers, {IGNORE} where nothing is taught.")


def _check_types(batch: Mapping[str, Any], ids: Tensor) -> None:
    """Token types, which say what each token is."""
    for name in TYPES:
        types = batch.get(name)
        if types is not None and (
            not isinstance(types, Tensor) or types.shape != ids.shape or types.is_floating_point()
        ):
            shape = f"{types.dtype} {tuple(types.shape)}" if isinstance(types, Tensor) else type(types).__name__
            raise InputError(
                f"{name} is {shape}; expected integers of input_ids' shape {tuple(ids.shape)}, as the processor made "
                "them."
            )


def check_contents(batch: HostBatch, adapter: HostAdapter) -> None:
    """Refuse numbers that stand for nothing, once the batch is read and they are on the CPU.

    Raises:
        InputError: ids or labels that the vocabulary doesn't have, rows without a token, a mask of images that says
            more than yes and no, or labels on placeholders; the message names the row and the value.
    """
    ids, labels, mask = batch.cpu["input_ids"], batch.cpu.get("labels"), batch.cpu.get("attention_mask")
    vocabulary = _vocabulary(adapter)
    if vocabulary is not None:
        _refuse_unknown("input_ids", ids.numpy(), adapter.placeholder_ids, vocabulary)
        if labels is not None:
            shown = set(adapter.placeholder_ids).intersection(np.unique(ids.numpy()).tolist())
            _refuse_unknown(
                "labels", labels.numpy(), (IGNORE, *shown), min(_num_predicted(adapter) or vocabulary, vocabulary)
            )
    if mask is not None:
        _check_marks((mask.float() if mask.dtype == torch.bfloat16 else mask).numpy(), bool(batch.spans))
    _check_targets(ids, labels, adapter.placeholder_ids)


def _vocabulary(adapter: HostAdapter) -> int | None:
    """How many tokens the host has embeddings for; None where it doesn't say."""
    model = stock.base_of(adapter.host)
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(table, "num_embeddings", None)


def _num_predicted(adapter: HostAdapter) -> int | None:
    """How many tokens the host has logits for; None where it doesn't say."""
    model = stock.base_of(adapter.host)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return getattr(head, "out_features", None)


def _refuse_unknown(name: str, values: np.ndarray, known: Sequence[int], vocabulary: int) -> None:
    wrong = (values < 0) | (values >= vocabulary)
    if wrong.any():
        wrong &= ~np.isin(values, known)
    if wrong.any():
        row, place = (int(axis[0]) for axis in np.nonzero(wrong))
        also = f", or {IGNORE} where nothing is supervised" if name == "labels" else ""
        raise InputError(
            f"{name} of row {row} has {int(values[row, place])} at position {place}; the host's vocabulary is 0 to "
            f"{vocabulary - 1}{also}. Use the tokenizer that belongs to the host."
        )


def _check_marks(mask: np.ndarray, shown: bool) -> None:
    """Refuse a mask ``(rows, length)`` that is 0 on a whole row or, where ``shown``, is neither 0 nor 1 somewhere."""
    empty = (mask == 0).all(-1)
    if empty.any():
        raise InputError(
            f"attention_mask is 0 on every token of row {int(np.nonzero(empty)[0][0])}, so nothing is asked there. "
            "Leave the row out, or let the mask be 1 on its tokens."
        )
    other = (mask != 0) & (mask != 1)
    if shown and other.any():
        row, place = (int(axis[0]) for axis in np.nonzero(other))
        raise InputError(
            f"attention_mask of row {row} has {mask[row, place].item()} at position {place}; where images are "
            "shortened it must be 1 for tokens and 0 for padding."
        )


def _check_targets(ids: Tensor, labels: Tensor | None, tokens: Sequence[int]) -> None:
    if not tokens or labels is None:
        return
    places = torch.isin(ids, torch.tensor(tokens)) & (labels != IGNORE)
    if bool(places.any()):
        raise InputError(
            f"labels supervise {int(places.sum())} image placeholders (token {' or '.join(map(str, tokens))}), whose "
            f"number depends on the level, so losses couldn't be averaged rightly. Set them to {IGNORE}: "
            f"labels[torch.isin(input_ids, torch.tensor({list(tokens)}))] = {IGNORE}"
        )


def _check_positions(batch: Mapping[str, Any], ids: Tensor, visual: set[str]) -> None:
    """Other inputs that count in the caller's positions."""
    for name in PACKED:
        if name in batch:
            raise InputError(
                f"{name} says where packed samples begin in the full sequence, which images of fewer tokens move. Pass "
                "one sample per row, padded, with attention_mask."
            )
    known = {*TEXT, *SEQUENCE_KEYS, *visual, "labels", SHIFTED}
    for name, value in batch.items():
        if name in known or not isinstance(value, Tensor):
            continue
        if value.dim() >= 2 and value.shape[:2] == ids.shape:
            raise InputError(
                f"{name} has one entry per token {tuple(value.shape[:2])}, and it isn't known how to shorten it "
                "together with the images. Leave it out."
            )

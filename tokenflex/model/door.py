"""What a batch must be before anything is done with it: refused by name here, instead of deep inside or not at all."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenflex.contracts import HostAdapter, HostBatch
from tokenflex.errors import InputError
from tokenflex.hosts.placeholders import IGNORE, SEQUENCE_KEYS

ENCODED = "mm_encoder_outputs"
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Inputs that say where packed samples begin, in positions of the caller's sequence."""
TEXT = ("input_ids", "inputs_embeds")
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
    given = {name: value for name, value in batch.items() if value is not None}
    shown = visual_inputs(given, adapter)
    if held and shown and not prefixed:
        raise InputError(
            f"the cache already holds {held} tokens, the images among them; pass no {', '.join(shown)} with it. To "
            "continue a conversation give generate() the earlier output's compact_sequences, extended by the new "
            "turn, as input_ids, and compact_attention_mask alike. For another image begin without a cache."
        )
    ids = given.get("input_ids")
    if shown and (ids is None or "inputs_embeds" in given):
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
        _check_labels(given, ids)
        if shown or isinstance(given.get("attention_mask"), Tensor):
            _check_mask(given, ids, held, bool(shown))
    if shown:
        assert isinstance(ids, Tensor)
        _check_positions(given, ids, {*adapter.encoder_inputs, *adapter.position_inputs})


def refuse_whole_batch(given: Any) -> None:
    """Refuse a whole batch in the place of ids.

    Raises:
        InputError: says how batches are given.
    """
    if isinstance(given, Mapping):
        raise InputError(
            f"a {type(given).__name__} with {', '.join(map(str, given))} came as input_ids; give a batch by keywords: "
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
        if not shown:
            return  # nothing is shortened, so it is the host's own business
        raise InputError(
            f"attention_mask {kind}; where images are shortened it must be (rows, length), 1 for tokens and 0 for "
            "padding, since who sees whom can't be carried over to fewer tokens."
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


def check_targets(batch: HostBatch, adapter: HostAdapter) -> None:
    """Refuse labels on placeholders, once the batch is read.

    Raises:
        InputError: the message says how to take them off.
    """
    tokens, labels = adapter.placeholder_ids, batch.cpu.get("labels")
    if not tokens or labels is None:
        return
    places = torch.isin(batch.cpu["input_ids"], torch.tensor(tokens)) & (labels != IGNORE)
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

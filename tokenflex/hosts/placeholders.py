"""The one place that resizes runs of image placeholders in ids, mask, labels and token types.

A processor writes one placeholder token per visual token it expects. `plan` decides, row by row, which
positions of the caller's sequence survive and how many placeholders stand for each image; `apply` then builds
every tensor of the shorter batch from that one plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenflex.contracts import HostBatch, HostInputs, PaddingSide, Span
from tokenflex.errors import InputError
from tokenflex.ops.transfer import to_cpu

__all__ = ["Shortening", "apply", "gathered", "index", "locate", "on_cpu", "places", "plan"]

IGNORE = -100
PLACEHOLDER = -1
TOKEN_KEYS: Mapping[str, int] = {
    "labels": IGNORE,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
}
"""Inputs with one entry per token, and what stands at padding."""
POSITIONS = "position_ids"
SEQUENCE_KEYS = ("attention_mask", *TOKEN_KEYS, POSITIONS)


@dataclass(frozen=True)
class Shortening:
    """For each new position the old one it comes from.

    Attributes:
        source: ``(new_rows, new_length)``, old position; 0 where ``real`` is False.
        real: ``(new_rows, new_length)``, False for padding.
        visual: ``(new_rows, new_length)``, True for placeholders.
        unchanged: nothing was dropped or moved; the caller's tensors can be used as they are.
        rows: ``(new_rows,)``, rows of the batch that the new ones come from.
    """

    source: Int[np.ndarray, "new_rows new_length"]
    real: Bool[np.ndarray, "new_rows new_length"]
    visual: Bool[np.ndarray, "new_rows new_length"]
    unchanged: bool
    rows: Int[np.ndarray, " new_rows"]


def on_cpu(inputs: HostInputs, sizes: Sequence[str] = ()) -> dict[str, Tensor]:
    """What of a batch's inputs says what is where, copied to the CPU at once (see `HostBatch.cpu`).

    Args:
        sizes: inputs besides ids, mask, labels and token types.
    """
    wanted = dict.fromkeys(("input_ids", "attention_mask", *TOKEN_KEYS, *sizes))
    found = {name: inputs[name] for name in wanted if isinstance(inputs.get(name), Tensor)}
    places = inputs.get(POSITIONS)
    if isinstance(places, Tensor) and places.dim() == 2:
        found[POSITIONS] = places
    return to_cpu(found)


def locate(shown: Bool[Tensor, "rows length"] | Bool[np.ndarray, "rows length"], counts: Sequence[int]) -> list[Span]:
    """Which placeholders belong to which image, by walking them in order.

    Args:
        shown: True at placeholders; on the CPU.
        counts: placeholders each image of the batch needs, in batch order.

    Raises:
        InputError: a row's placeholders don't add up to whole images, or images are left over.
    """
    spans: list[Span] = []
    for row, here in enumerate(np.asarray(shown)):
        at = torch.from_numpy(np.flatnonzero(here))
        start, first = 0, len(spans)
        while start < len(at) and len(spans) < len(counts):
            size = counts[len(spans)]
            spans.append(Span(row, at[start : min(start + size, len(at))]))
            start += size
        if start != len(at):
            if not counts:
                raise InputError(
                    f"row {row} has {len(at)} image placeholder tokens, and no image came with them. Pass all that "
                    "the processor made, **inputs with pixel_values, or leave the placeholders out of the text."
                )
            own = counts[first : len(spans)]
            raise InputError(
                f"row {row} has {len(at)} image placeholder tokens, but its {len(own)} image(s) need {start} "
                f"({', '.join(map(str, own))}). Make text and images with the same processor "
                "call and don't truncate the placeholders."
            )
    if len(spans) != len(counts):
        listed = ", ".join(f"row {row}: {sum(span.row == row for span in spans)}" for row in range(len(shown)))
        raise InputError(
            f"the batch holds {len(counts)} images, but its text has placeholders for {len(spans)} only "
            f"({listed:.300}). Put one image token into the text per image."
        )
    return spans


def padding_side(mask: Any) -> PaddingSide:
    """The side a batch is padded on; right when it has no padding.

    Args:
        mask: ``(rows, length)``, 0 for padding; a tensor on the CPU or an array.
    """
    return "left" if bool((np.asarray(mask)[:, 0] == 0).any()) else "right"


def plan(
    batch: HostBatch, kept: Sequence[Sequence[int]], side: PaddingSide | None, rows: Sequence[int] | None = None
) -> Shortening:
    """Decide which positions survive.

    Args:
        kept: placeholders each image is to have: one number, or one for each of the runs its placeholders form. A
            run that keeps nothing takes the text tokens with it that belong to it.
        side: where rows are padded to a common length; None keeps the batch's side.
        rows: of the batch; None: all.

    Raises:
        InputError: the mask hides placeholders of an image.
    """
    mask, spans = batch.attended.numpy(), batch.spans
    now = padding_side(mask)
    side = side or now
    shown = np.zeros_like(mask)
    for span in spans:
        shown[span.row, span.at.numpy()] = True
    _refuse_hidden(shown, mask)
    chosen = np.arange(len(mask)) if rows is None else np.array(rows, dtype=np.int64)
    moved = side != now and not mask.all()
    if rows is None and not moved and all(len(s.at) == sum(sizes) for s, sizes in zip(spans, kept, strict=True)):
        source = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        return Shortening(source, np.ones_like(mask), shown, True, chosen)
    text = mask & ~shown
    own: list[list[tuple[Span, Sequence[int]]]] = [[] for _ in mask]
    for span, sizes in sorted(zip(spans, kept, strict=True), key=lambda item: int(item[0].at[0])):
        own[span.row].append((span, sizes))
    shorter = [_row(text[row], own[row]) for row in chosen]
    length = max(map(len, shorter))
    source = np.zeros((len(shorter), length), dtype=np.int64)
    real = np.zeros((len(shorter), length), dtype=bool)
    for i, row in enumerate(shorter):
        where = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        source[i, where], real[i, where] = row, True
    visual = np.take_along_axis(shown[chosen], source, 1) & real
    return Shortening(source, real, visual, False, chosen)


def standing_in(batch: HostBatch, rows: Sequence[int] | None) -> list[int]:
    """Numbers of the images that stand in some rows of a batch, row by row; all, in batch order, where rows is None."""
    if rows is None:
        return list(range(len(batch.spans)))
    return [i for row in rows for i, span in enumerate(batch.spans) if span.row == row]


def _refuse_hidden(shown: Bool[np.ndarray, "rows length"], mask: Bool[np.ndarray, "rows length"]) -> None:
    hidden = (shown & ~mask).sum(-1)
    if hidden.any():
        row = int(np.flatnonzero(hidden)[0])
        raise InputError(
            f"attention_mask hides {int(hidden[row])} of the image placeholders of row {row}; which of an image's "
            "fewer tokens that would be isn't defined. Let the mask be 1 on all of them, or leave the image out."
        )


def _row(
    text: Bool[np.ndarray, " length"], images: Sequence[tuple[Span, Sequence[int]]]
) -> Int[np.ndarray, " new_length"]:
    """Old positions of one shortened row: attended text tokens, and of each run its first placeholders.

    A run that must have more placeholders than now repeats its last one.
    """
    pieces: list[np.ndarray] = []
    done = 0

    def text_until(end: int) -> np.ndarray:
        return done + np.flatnonzero(text[done:end])

    for span, sizes in images:
        runs = _runs(span, len(sizes))
        first, follows = runs[0], True
        for run, size in zip(runs, sizes, strict=True):
            pieces += [text_until(int(run[0]))] * (size > 0 if span.leads and run is not first else follows)
            pieces += [run[:size], run[-1:].repeat(max(size - len(run), 0))]
            done = int(run[0])
            pieces.append(text_until(int(run[-1]) + 1))
            done, follows = int(run[-1]) + 1, size > 0
    return np.concatenate([*pieces, text_until(len(text))])


def _runs(span: Span, count: int) -> list[np.ndarray]:
    """The placeholders as one run, whatever lies between them, or as the ``count`` runs they form."""
    at = span.at.numpy()
    if count == 1:
        return [at]
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    if len(runs) != count:
        raise InputError(
            f"row {span.row} has an image whose {len(at)} placeholders form {len(runs)} runs, but {count} are "
            "expected (one per row or frame of it). Make text and images with the same processor call."
        )
    return runs


def apply(plan: Shortening, batch: HostBatch, pad_token_id: int) -> dict[str, Any]:
    """Ids, mask, labels and token types of the shorter batch; other keys are left out.

    Labels on placeholders become -100, so the number of supervised tokens doesn't depend on the level. Positions that
    only count the tokens count those of the shorter batch.

    Raises:
        InputError: ``position_ids`` of ``(rows, length)`` say anything else.
    """
    inputs = batch.inputs
    if plan.unchanged:
        out = {key: inputs[key] for key in ("input_ids", *SEQUENCE_KEYS) if inputs.get(key) is not None}
        if "labels" in out and plan.visual.any():
            out["labels"] = out["labels"].masked_fill(torch.from_numpy(plan.visual).to(out["labels"].device), IGNORE)
        return out
    device = inputs["input_ids"].device
    out = {"input_ids": _taken(plan, batch.cpu["input_ids"], pad_token_id).to(device)}
    out["attention_mask"] = torch.from_numpy(plan.real.astype(np.int64)).to(device)
    for key, fill in TOKEN_KEYS.items():
        if key in batch.cpu:
            hidden = plan.visual if key == "labels" else None
            out[key] = _taken(plan, batch.cpu[key], fill, hidden).to(inputs[key].device)
    return out | _counted(plan, batch)


def _taken(plan: Shortening, values: Tensor, fill: int, hidden: Bool[np.ndarray, "..."] | None = None) -> Tensor:
    """``(new_rows, new_length)`` of entries per token on the CPU; ``fill`` at padding and where they are hidden."""
    keep = plan.real if hidden is None else plan.real & ~hidden
    array = values.numpy()
    found = np.take_along_axis(array[plan.rows], plan.source, 1)
    return torch.from_numpy(np.where(keep, found, array.dtype.type(fill)))


def _counted(plan: Shortening, batch: HostBatch) -> dict[str, Tensor]:
    """Positions of a shorter batch: none where the host counts by itself, or the count of attended tokens."""
    positions = batch.cpu.get(POSITIONS)
    if positions is None:
        return {}
    attended = batch.attended
    if bool((positions == torch.arange(attended.shape[1])).all()):
        return {}
    if positions.shape == attended.shape and bool(((positions == attended.cumsum(-1) - 1) | ~attended).all()):
        counted = torch.from_numpy((plan.real.cumsum(-1) - 1).clip(0))
        return {POSITIONS: counted.to(batch.inputs[POSITIONS].device)}
    raise InputError(
        f"{POSITIONS} {tuple(positions.shape)} are the caller's own, and where an image of fewer tokens and the text "
        "behind it would sit isn't defined by them. Leave them out; for the finest level call flex.host itself."
    )


def gathered(plan: Shortening, value: Tensor, fill: int) -> Tensor:
    """Entries per token, ``(*leading, rows, length)``, for the new sequence, on their device."""
    arrays = (plan.rows, np.ascontiguousarray(plan.source), plan.real)
    rows, source, real = (torch.from_numpy(array).to(value.device) for array in arrays)
    picked = value.index_select(-2, rows)
    return picked.gather(-1, source.expand(*picked.shape[:-1], -1)).masked_fill(~real, fill)


def index(plan: Shortening) -> Int[Tensor, "new_rows new_length"]:
    """Old position of every new text token, -1 elsewhere; on the CPU."""
    return torch.from_numpy(np.where(plan.real & ~plan.visual, plan.source, PLACEHOLDER))


def places(plan: Shortening, spans: Sequence[Span], kept: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(new rows, new positions) of every image's kept placeholders, in order.

    Args:
        spans: of the images in the plan's rows.
        kept: placeholders of each of them.
    """
    new_row = {int(row): i for i, row in enumerate(plan.rows)}
    taken = dict.fromkeys(new_row.values(), 0)
    where = {i: np.flatnonzero(plan.visual[i]) for i in taken}
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].row, int(spans[i].at[0]))):
        row = new_row[spans[i].row]
        own = where[row][taken[row] : taken[row] + kept[i]]
        taken[row] += kept[i]
        found[i] = (np.full_like(own, row), own)
    return [found[i] for i in range(len(spans))]

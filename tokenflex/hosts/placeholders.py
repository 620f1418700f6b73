"""The one place that resizes runs of image placeholders in ids, mask, labels and token types.

A processor writes one placeholder token per visual token it expects. `plan` decides, row by row, which
positions of the caller's sequence survive and how many placeholders stand for each image; `apply` then builds
every tensor of the shorter batch from that one plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenflex.contracts import PaddingSide
from tokenflex.errors import InputError

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
class Span:
    """Where one image stands in the caller's sequence.

    Attributes:
        row: row of the batch.
        at: positions of its placeholders, ascending.
        leads: whether the words before a run of it belong to that run (a frame's time), rather than those behind.
    """

    row: int
    at: Int[Tensor, " placeholders"]
    leads: bool = False


@dataclass(frozen=True)
class Plan:
    """For each new position the old one it comes from.

    Attributes:
        source: ``(rows, new_length)``, old position; 0 where ``real`` is False.
        real: ``(rows, new_length)``, False for padding.
        visual: ``(rows, new_length)``, True for placeholders.
        unchanged: nothing was dropped or moved; the caller's tensors can be used as they are.
    """

    source: Int[Tensor, "rows new_length"]
    real: Bool[Tensor, "rows new_length"]
    visual: Bool[Tensor, "rows new_length"]
    unchanged: bool


def locate(shown: Bool[Tensor, "rows length"], counts: Sequence[int]) -> list[Span]:
    """Which placeholders belong to which image, by walking them in order.

    Args:
        shown: True at placeholders.
        counts: placeholders each image of the batch needs, in batch order.

    Raises:
        InputError: a row's placeholders don't add up to whole images, or images are left over.
    """
    spans: list[Span] = []
    for row, here in enumerate(shown.cpu()):
        at = here.nonzero().flatten()
        start, first = 0, len(spans)
        while start < len(at) and len(spans) < len(counts):
            size = counts[len(spans)]
            spans.append(Span(row, at[start : start + size]))
            start += size
        if start != len(at):
            mine = counts[first : len(spans)]
            raise InputError(
                f"row {row} has {len(at)} image placeholder tokens, but its {len(mine)} image(s) need {start} "
                f"({', '.join(map(str, mine))}). Make text and images with the same processor "
                "call and don't truncate the placeholders."
            )
    if len(spans) != len(counts):
        raise InputError(
            f"the batch holds {len(counts)} images, but its text has placeholders for {len(spans)} only. "
            "Put one image token into the text per image."
        )
    return spans


def padding_side(mask: Int[Tensor, "rows length"] | Bool[Tensor, "rows length"]) -> PaddingSide:
    """The side a batch is padded on; right when it has no padding."""
    return "left" if bool((mask[:, 0] == 0).any()) else "right"


def plan(
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Tensor | None,
    spans: Sequence[Span],
    kept: Sequence[Sequence[int]],
    side: PaddingSide | None,
) -> Plan:
    """Decide which positions survive.

    Args:
        spans: where the images stand.
        kept: placeholders each image is to have: one number, or one for each of the runs its placeholders form. A
            run that keeps nothing takes the words with it that belong to it.
        side: where rows are padded to a common length; None keeps the batch's side.

    Raises:
        InputError: the mask hides placeholders of an image.
    """
    ids = input_ids.cpu()
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.cpu()
    now = padding_side(mask)
    side = side or now
    shown = torch.zeros_like(ids, dtype=torch.bool)
    for span in spans:
        shown[span.row, span.at] = True
    _refuse_hidden(shown, mask)
    moved = side != now and bool((mask == 0).any())
    if not moved and all(len(span.at) == sum(sizes) for span, sizes in zip(spans, kept, strict=True)):
        source = torch.arange(ids.shape[1]).expand_as(ids)
        return Plan(source, torch.ones_like(ids, dtype=torch.bool), shown, unchanged=True)
    text = (mask != 0) & ~shown
    mine: list[list[tuple[Span, Sequence[int]]]] = [[] for _ in ids]
    for span, sizes in zip(spans, kept, strict=True):
        mine[span.row].append((span, sizes))
    rows = [_row(text[row], sorted(mine[row], key=lambda item: int(item[0].at[0]))) for row in range(len(ids))]
    length = max(len(row) for row in rows)
    source = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        source[i, where], real[i, where] = row, True
    return Plan(source, real, shown.gather(1, source) & real, unchanged=False)


def _refuse_hidden(shown: Bool[Tensor, "rows length"], mask: Int[Tensor, "rows length"] | Tensor) -> None:
    hidden = (shown & (mask == 0)).sum(-1)
    if bool(hidden.any()):
        row = int(hidden.nonzero()[0])
        raise InputError(
            f"attention_mask hides {int(hidden[row])} of the image placeholders of row {row}; which of an image's "
            "fewer tokens that would be isn't defined. Let the mask be 1 on all of them, or leave the image out."
        )


def _row(text: Bool[Tensor, " length"], images: Sequence[tuple[Span, Sequence[int]]]) -> Int[Tensor, " new_length"]:
    """Old positions of one shortened row: attended words, and of each run its first placeholders.

    A run that must have more placeholders than now repeats its last one.
    """
    pieces: list[Tensor] = []
    done = 0

    def words(end: int) -> Tensor:
        return torch.arange(done, end)[text[done:end]]

    for span, sizes in images:
        runs = _runs(span, len(sizes))
        first, follows = runs[0], True
        for run, size in zip(runs, sizes, strict=True):
            pieces += [words(int(run[0]))] * (size > 0 if span.leads and run is not first else follows)
            pieces += [run[:size], run[-1:].repeat(max(size - len(run), 0))]
            done = int(run[0])
            pieces.append(words(int(run[-1]) + 1))
            done, follows = int(run[-1]) + 1, size > 0
    return torch.cat([*pieces, words(len(text))])


def _runs(span: Span, count: int) -> list[Tensor]:
    """The placeholders as one run, whatever lies between them, or as the ``count`` runs they form."""
    if count == 1:
        return [span.at]
    ends = (span.at.diff() > 1).nonzero().flatten() + 1
    runs = list(span.at.tensor_split(ends.cpu()))
    if len(runs) != count:
        raise InputError(
            f"row {span.row} has an image whose {len(span.at)} placeholders form {len(runs)} runs, but {count} are "
            "expected (one per row or frame of it). Make text and images with the same processor call."
        )
    return runs


def apply(plan: Plan, inputs: Mapping[str, Any], pad_token_id: int, length: int | None = None) -> dict[str, Any]:
    """Ids, mask, labels and token types of the shorter batch; other keys are left out.

    Labels on placeholders become -100, so the number of supervised tokens doesn't depend on the level. Positions that
    only count the tokens count those of the shorter batch.

    Raises:
        InputError: ``position_ids`` of ``(rows, length)`` say anything else.
    """
    ids = inputs["input_ids"]
    out: dict[str, Any] = {}
    if plan.unchanged:
        out = {key: inputs[key] for key in ("input_ids", *SEQUENCE_KEYS) if inputs.get(key) is not None}
        if "labels" in out:
            out["labels"] = out["labels"].masked_fill(plan.visual.to(ids.device), IGNORE)
        return out
    source, real, visual = (t.to(ids.device) for t in (plan.source, plan.real, plan.visual))
    out["input_ids"] = ids.gather(1, source).masked_fill(~real, pad_token_id)
    out["attention_mask"] = real.to(torch.long)
    for key, fill in TOKEN_KEYS.items():
        value = inputs.get(key)
        if value is not None:
            out[key] = gathered(plan, value, fill)
    out.update(_counted(inputs, real))
    if "labels" in out:
        out["labels"] = out["labels"].masked_fill(visual.to(out["labels"].device), IGNORE)
    return out


def _counted(inputs: Mapping[str, Any], real: Bool[Tensor, "rows new_length"]) -> dict[str, Tensor]:
    """Positions of a shorter batch: none where the host counts by itself, or the count of attended tokens."""
    given, ids, mask = inputs.get(POSITIONS), inputs["input_ids"], inputs.get("attention_mask")
    if given is None or given.dim() != 2:
        return {}
    plain = torch.arange(ids.shape[1], device=given.device)
    if bool((given == plain).all()):
        return {}
    attended = torch.ones_like(ids) if mask is None else mask
    attended = attended.to(given.device).long()
    if given.shape == ids.shape and bool(((given == attended.cumsum(-1) - 1) | (attended == 0)).all()):
        return {POSITIONS: (real.long().cumsum(-1) - 1).clamp(min=0)}
    raise InputError(
        f"{POSITIONS} {tuple(given.shape)} are the caller's own, and where an image of fewer tokens and the words "
        "behind it would sit isn't defined by them. Leave them out; for the finest level call flex.host itself."
    )


def gathered(plan: Plan, value: Tensor, fill: int) -> Tensor:
    """Entries per token, ``(*leading, rows, length)``, for the new sequence."""
    source, real = plan.source.to(value.device), plan.real.to(value.device)
    return value.gather(-1, source.expand(*value.shape[:-1], -1)).masked_fill(~real, fill)


def index(plan: Plan) -> Int[Tensor, "rows new_length"]:
    """Old position of every new text token, -1 elsewhere."""
    return plan.source.masked_fill(~plan.real | plan.visual, PLACEHOLDER)

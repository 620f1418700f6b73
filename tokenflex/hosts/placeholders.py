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
SEQUENCE_KEYS = ("attention_mask", "labels", "token_type_ids", "mm_token_type_ids", "position_ids")


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


def images_per_row(
    input_ids: Int[Tensor, "rows length"], image_token_id: int, counts: Sequence[int]
) -> list[list[int]]:
    """Which images belong to which row, by walking the placeholders in order.

    Args:
        counts: placeholders each image of the batch needs, in batch order.

    Raises:
        InputError: a row's placeholders don't add up to whole images, or images are left over.
    """
    rows: list[list[int]] = []
    image = 0
    for row, found in enumerate((input_ids == image_token_id).sum(-1).tolist()):
        mine: list[int] = []
        need = 0
        while need < found and image < len(counts):
            mine.append(image)
            need += counts[image]
            image += 1
        if need != found:
            raise InputError(
                f"row {row} has {found} image placeholder tokens, but its {len(mine)} image(s) need {need} "
                f"({', '.join(str(counts[i]) for i in mine)}). Make text and images with the same processor "
                "call and don't truncate the placeholders."
            )
        rows.append(mine)
    if image != len(counts):
        raise InputError(
            f"the batch holds {len(counts)} images, but its text has placeholders for {image} only. "
            "Put one image token into the text per image."
        )
    return rows


def padding_side(mask: Int[Tensor, "rows length"] | Bool[Tensor, "rows length"]) -> PaddingSide:
    """The side a batch is padded on; right when it has no padding."""
    return "left" if bool((mask[:, 0] == 0).any()) else "right"


def plan(
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Tensor | None,
    image_token_id: int,
    full: Sequence[int],
    kept: Sequence[int],
    side: PaddingSide | None,
) -> Plan:
    """Decide which positions survive.

    Args:
        full: placeholders of each image now.
        kept: placeholders each image is to have.
        side: where rows are padded to a common length; None keeps the batch's side.
    """
    ids = input_ids.cpu()
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.cpu()
    now = padding_side(mask)
    side = side or now
    owners = images_per_row(ids, image_token_id, full)
    moved = side != now and bool((mask == 0).any())
    if list(full) == list(kept) and not moved:
        source = torch.arange(ids.shape[1]).expand_as(ids)
        return Plan(source, torch.ones_like(ids, dtype=torch.bool), ids == image_token_id, unchanged=True)
    rows = [
        _row(ids[row], mask[row], image_token_id, [full[i] for i in images], [kept[i] for i in images])
        for row, images in enumerate(owners)
    ]
    length = max(len(row) for row in rows)
    source = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        source[i, where], real[i, where] = row, True
    visual = (ids.gather(1, source) == image_token_id) & real
    return Plan(source, real, visual, unchanged=False)


def _row(
    ids: Int[Tensor, " length"],
    mask: Tensor,
    image_token_id: int,
    full: Sequence[int],
    kept: Sequence[int],
) -> Int[Tensor, " new_length"]:
    """Old positions of one shortened row: attended text, and for each image its first placeholders.

    An image that must have more placeholders than now repeats its last one.
    """
    at = (ids == image_token_id).nonzero().flatten()
    pieces: list[Tensor] = []
    done = start = 0
    attended = mask != 0
    for before, after in zip(full, kept, strict=True):
        mine = at[start : start + before]
        start += before
        text = torch.arange(done, int(mine[0]))
        pieces += [text[attended[text]], mine[:after], mine[-1:].repeat(max(after - before, 0))]
        between = torch.arange(int(mine[0]), int(mine[-1]) + 1)
        pieces.append(between[(ids[between] != image_token_id) & attended[between]])
        done = int(mine[-1]) + 1
    text = torch.arange(done, len(ids))
    return torch.cat([*pieces, text[attended[text]]])


def apply(plan: Plan, inputs: Mapping[str, Any], pad_token_id: int, length: int | None = None) -> dict[str, Any]:
    """Ids, mask, labels and token types of the shorter batch; other keys are left out.

    Labels on placeholders become -100, so the number of supervised tokens doesn't depend on the level.
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
    for key, fill in (
        ("labels", IGNORE),
        ("token_type_ids", 0),
        ("mm_token_type_ids", 0),
        ("position_ids", 0),
    ):
        value = inputs.get(key)
        if value is not None:
            out[key] = value.gather(1, source.to(value.device)).masked_fill(~real.to(value.device), fill)
    if "labels" in out:
        out["labels"] = out["labels"].masked_fill(visual.to(out["labels"].device), IGNORE)
    return out


def index(plan: Plan) -> Int[Tensor, "rows new_length"]:
    """Old position of every new text token, -1 elsewhere."""
    return plan.source.masked_fill(~plan.real | plan.visual, PLACEHOLDER)

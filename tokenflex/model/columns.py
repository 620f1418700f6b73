"""Which column of the shortened batch stands for which position of the caller's sequence.

Words keep their own column. An image of ``N`` placeholders that became ``n`` visual tokens has them at its last ``n``
placeholders, so that the output right in front of the text tokens behind the image is the one that predicts them. Where
an image's run was dropped together with text tokens that belong to it, the output in front of the next word that is
left stands right in front of that word, too. All other positions, padding among them, have no column.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Spliced
from tokenflex.errors import InputError
from tokenflex.hosts.grouped import Rows
from tokenflex.hosts.placeholders import IGNORE

NONE = -1
"""The column of a position that has none."""


def of_positions(rows: Rows) -> Int[Tensor, "rows length"]:
    """The column of every position of the caller's sequence, `NONE` where there is none; on the CPU."""
    index = rows.whole.index.numpy()
    real = _real(rows.whole)
    length = rows.batch.cpu["input_ids"].shape[1]
    found = np.full((len(index), length), NONE, dtype=np.int64)
    which, columns = np.nonzero(index >= 0)
    found[which, index[which, columns]] = columns
    _place_images(rows, found, index, real)
    which, columns = np.nonzero((index > 0) & real)
    before = index[which, columns] - 1
    needed = (columns > 0) & (found[which, before] == NONE) & real[which, columns - 1]
    found[which[needed], before[needed]] = columns[needed] - 1
    return torch.from_numpy(found)


def _real(spliced: Spliced) -> np.ndarray:
    """Which positions aren't padding, ``(rows, new_length)``."""
    mask = spliced.inputs.get("attention_mask")
    shape = tuple(spliced.index.shape)
    return np.ones(shape, dtype=bool) if mask is None else (mask != 0).cpu().numpy()


def _place_images(rows: Rows, found: np.ndarray, index: np.ndarray, real: np.ndarray) -> None:
    """Put the columns of visual tokens at the ends of their images' runs of placeholders."""
    spans, kept = rows.batch.spans, rows.whole.tokens
    left = [np.flatnonzero(real[row] & (index[row] < 0)) for row in range(len(index))]
    length = found.shape[1]
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].row, int(spans[i].at[0]))):
        row, at = spans[i].row, spans[i].at.numpy()
        own, left[row] = left[row][: kept[i]], left[row][kept[i] :]
        for run in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1) if len(own) else ():
            text = np.where(index[row] >= 0, index[row], NONE)
            behind = text[run[-1] + 1 :]
            begin = text[: run[0]].max(initial=NONE)
            end = behind[behind >= 0].min(initial=length)
            places = at[(at > begin) & (at < end)][-len(run) :]
            found[row, places] = run[len(run) - len(places) :]


def laid_out(values: Tensor, columns: Int[Tensor, "rows length"]) -> Tensor:
    """``(rows, length, *)``: outputs at the caller's positions, 0 where a position has no column.

    Args:
        values: ``(rows, new_length, *)``.
        columns: on the device of the values.
    """
    flat = values.flatten(2)
    picked = torch.gather(flat, 1, columns.clamp(min=0)[..., None].expand(-1, -1, flat.shape[-1]))
    picked = picked.masked_fill_((columns == NONE)[..., None], 0)
    return picked.unflatten(2, values.shape[2:]) if values.dim() != 3 else picked


def shortened(
    labels: Int[Tensor, "rows length"], columns: Int[Tensor, "rows length"], new_length: int
) -> Int[Tensor, "rows new_length"]:
    """Labels that stand at the position which predicts them, for the shortened batch.

    Args:
        labels: ``shift_labels``, -100 where nothing is supervised.
        columns: on the CPU.

    Raises:
        InputError: a position is supervised that has no column: what it would predict is a placeholder.
    """
    here = columns.to(labels.device)
    lost = (here == NONE) & (labels != IGNORE)
    if bool(lost.any()):
        raise InputError(
            f"shift_labels supervise {int(lost.sum())} positions that have no output once images have fewer tokens: "
            f"image placeholders, or padding. Set them to {IGNORE}."
        )
    made = labels.new_full((len(labels), new_length), IGNORE)
    values = labels.masked_fill(here == NONE, IGNORE)
    return made.scatter_reduce(1, here.clamp(min=0), values, "amax")

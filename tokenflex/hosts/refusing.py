"""What is said of images besides their pixels, checked before anything is computed from it; and what hosts refuse.

Sizes of images decide how many tokens are looked for, so a wrong one is refused by name, number and value. Pixels are
the host's own business: where its encoder raises, the same is raised as an `InputError` that says what it was given.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenflex.contracts import HostInputs
from tokenflex.errors import InputError, TokenFlexError

LARGEST = 2**31 - 1
SIZES: Mapping[str, tuple[int | None, int]] = {
    "image_sizes": (2, 1),
    "image_grid_thw": (3, 1),
    "video_grid_thw": (3, 1),
    "spatial_shapes": (2, 1),
    "target_sizes": (2, 1),
    "image_grid_hw": (2, 1),
    "image_grids": (4, 0),
    "image_merge_sizes": (None, 1),
    "num_local_patches": (None, 0),
    "patches_grid": (2, 0),
    "batch_num_images": (None, 0),
}
"""Per input: numbers for each image (None: one, without an axis of its own), and the smallest that makes sense."""
OPTIONAL = ("num_local_patches", "patches_grid", "batch_num_images")
PROCESSED = "Pass it as the host's processor made it."
REFUSALS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""Errors of an encoder that can't take what it is given, besides plain ``RuntimeError`` and its builtin kin."""
MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def sized(inputs: HostInputs, cpu: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The inputs named that say something of every image, on the CPU, as integers of the expected shape.

    Args:
        inputs: the batch.
        cpu: those of it that are tensors, on the CPU.
        names: of inputs; those that aren't in `SIZES` are left alone.

    Raises:
        InputError: one is missing, isn't made of integers, has another shape, holds a number that no size has, or tells
            of another number of images than the others.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        if name not in SIZES or (inputs.get(name) is None and name in OPTIONAL):
            continue
        found[name] = _checked(name, cpu.get(name, inputs.get(name)))
    counts = {name: len(value) for name, value in found.items() if name != "batch_num_images"}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} of {count}" for name, count in counts.items())
        raise InputError(f"{listed} images: pass one entry per image in each of them, as the processor made them.")
    return found


def _checked(name: str, value: Any) -> Tensor:
    columns, least = SIZES[name]
    wanted = "(images,)" if columns is None else f"(images, {columns})"
    if value is None:
        raise InputError(f"{name} is missing, and how large the images are isn't known without it. {PROCESSED}")
    table = value if isinstance(value, Tensor) else _tensor(name, value)
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise InputError(f"{name} is {table.dtype}; expected integers of shape {wanted}. {PROCESSED}")
    if table.dim() != (1 if columns is None else 2) or (columns is not None and table.shape[1] != columns):
        raise InputError(f"{name} has the shape {tuple(table.shape)}; expected {wanted}. {PROCESSED}")
    values = table.cpu().numpy()
    wrong = (values < least) | (values > LARGEST)
    if wrong.any():
        number = int(np.nonzero(wrong.reshape(len(values), -1).any(-1))[0][0])
        raise InputError(
            f"{name} says {table[number].tolist()} of image {number}; expected integers from {least} to {LARGEST}. "
            f"{PROCESSED}"
        )
    return table


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} is a {type(value).__name__} that makes no tensor ({error}). {PROCESSED}") from error


@contextmanager
def refusing(inputs: Mapping[str, Any], what: str = "the host's vision encoder") -> Iterator[None]:
    """Raise as an `InputError` what is raised because images aren't what they should be.

    Errors of the device and of its memory stay as they are.

    Args:
        inputs: the inputs in question, for the message.
        what: who can't take them.

    Raises:
        InputError: the message says what was given and what was said of it.
    """
    try:
        yield
    except TokenFlexError:
        raise
    except (RuntimeError, *REFUSALS) as error:
        if isinstance(error, RuntimeError) and not _refuses(error):
            raise
        listed = ", ".join(f"{name} {_described(value)}" for name, value in inputs.items() if value is not None)
        said = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{what} can't take the images it was given ({listed}): {type(error).__name__}: {said:.300}. Pass them as "
            "the host's processor made them, in the model's type."
        ) from error


def _refuses(error: RuntimeError) -> bool:
    said = str(error).lower()
    return type(error).__module__ == "builtins" and not (
        said.startswith(("cuda", "hip")) or any(phrase in said for phrase in MEMORY)
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return repr(value) if isinstance(value, int | float | bool) else f"a {type(value).__name__}"


def require_types(cpu: Mapping[str, Tensor], name: str, tokens: Sequence[int], known: Sequence[int]) -> None:
    """Refuse token types that the ids contradict: hosts compute positions from them.

    Args:
        cpu: input ids and token types on the CPU.
        name: of the input with the types: 0 for text tokens, 1 for images, 2 for videos.
        tokens: placeholders of type 1, 2 and so on.
        known: types that tell images and videos apart where they share a placeholder; empty where the ids do.

    Raises:
        InputError: names the row, the position, the type and the id.
    """
    ids, types = cpu["input_ids"].numpy(), cpu[name].numpy()
    by_ids = np.zeros_like(ids)
    for number, token in enumerate(tokens, 1):
        by_ids[ids == token] = number
    if known:
        stray = (by_ids != 0) & ~np.isin(types, known)
        if stray.any():  # as one that was typed may be; the host counts them
            row = int(np.nonzero(stray.any(-1))[0][0])
            raise InputError(
                f"row {row} has {int(stray[row].sum())} image placeholder tokens that {name} calls text. Make text "
                "and images with the same processor call, and leave placeholders out of what is typed."
            )
        wrong = ~np.isin(types, [0, *known])
    else:
        wrong = ((types != 0) & (types != by_ids)) | ((types == 0) & (by_ids == 1))
    if wrong.any():
        row, place = (int(axis[0]) for axis in np.nonzero(wrong))
        raise InputError(
            f"{name} of row {row} is {int(types[row, place])} at position {place}, where input_ids has "
            f"{int(ids[row, place])}; expected 0 for text, 1 for placeholders of images and 2 for those of videos. "
            f"{PROCESSED}"
        )
